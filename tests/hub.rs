//! The hub client against a hub on loopback: a real HTTP server that speaks the hub's protocol.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use pipeline_common::{
    stage::{Classify, Kind},
    text::{Dataset, DatasetSpec, Hub, HubArgs, TextError},
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server holds and what it was asked.
#[derive(Default)]
pub struct Store {
    /// `models/a/b` or `datasets/a/b` to its files.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The token without which requests get 401.
    token: Option<String>,
    /// Requests that are still to fail with 500, counting all, or only GETs of files.
    failures: AtomicUsize,
    broken_bodies: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

impl Store {
    /// A hub that is always well and holds these.
    pub fn of(repositories: [(&str, BTreeMap<String, Vec<u8>>); 2]) -> Self {
        let repositories = repositories.map(|(name, files)| (name.to_owned(), files)).into();
        Self { repositories, ..Self::default() }
    }
}

pub struct FakeHub {
    address: String,
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
}

impl FakeHub {
    pub fn start(store: Store) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = Arc::new(store);
        let app = Router::new().fallback(answer).with_state(store.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { address, store, runtime }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    fn requests(&self) -> Vec<String> {
        self.store.requests.lock().unwrap().clone()
    }

    pub fn stop(self) -> String {
        self.runtime.shutdown_background();
        self.address
    }
}

async fn answer(
    State(store): State<Arc<Store>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    store.requests.lock().unwrap().push(format!("{method} {}", uri.path()));
    let sent = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
    if store.token.as_ref().is_some_and(|t| sent != format!("Bearer {t}")) {
        return (StatusCode::UNAUTHORIZED, "a token is needed").into_response();
    }
    let one_less = |n: usize| n.checked_sub(1);
    if store.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "try again").into_response();
    }
    let response = match uri.path().strip_prefix("/api/") {
        Some(path) => api(&store, path),
        None => {
            let broken = method == Method::GET
                && store
                    .broken_bodies
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                    .is_ok();
            if broken {
                Some((StatusCode::FORBIDDEN, "link expired").into_response())
            } else {
                file(&store, uri.path())
            }
        }
    };
    response.unwrap_or_else(|| (StatusCode::NOT_FOUND, "no such thing").into_response())
}

/// `models/o/n/revision/main` and `models/o/n/tree/<commit>`.
fn api(store: &Store, path: &str) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').collect();
    let [kind, owner, name, what, revision] = parts[..] else { return None };
    let files = store.repositories.get(&format!("{kind}/{owner}/{name}"))?;
    let body = match what {
        "revision" if revision == "main" => {
            serde_json::json!({"id": format!("{owner}/{name}"), "sha": COMMIT, "siblings": []})
        }
        "tree" if revision == COMMIT => files
            .iter()
            .map(|(path, bytes)| serde_json::json!({"type": "file", "oid": "0", "size": bytes.len(), "path": path}))
            .collect(),
        _ => return None,
    };
    Some(([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}

/// `/o/n/resolve/<commit>/<path>`, with `/datasets` before it for a dataset.
fn file(store: &Store, path: &str) -> Option<Response> {
    let (repository, file) = path.split_once(&format!("/resolve/{COMMIT}/"))?;
    let repository = match repository.strip_prefix("/datasets/") {
        Some(id) => format!("datasets/{id}"),
        None => format!("models{repository}"),
    };
    let bytes = store.repositories.get(&repository)?.get(file)?;
    let etag = format!("\"{}\"", blake3::hash(bytes).to_hex());
    let headers = [("etag", etag), ("x-repo-commit", COMMIT.to_owned())];
    Some((headers, Bytes::from(bytes.clone())).into_response())
}

fn model_files() -> BTreeMap<String, Vec<u8>> {
    let index = br#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}"#;
    [
        ("config.json", &b"{\"model_type\": \"llama\"}"[..]),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", b"weights one"),
        ("model-00002-of-00002.safetensors", b"weights two"),
        ("pytorch_model.bin", b"a pickle nobody wants"),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
    .into()
}

fn dataset_files() -> BTreeMap<String, Vec<u8>> {
    let lines = |range: std::ops::Range<u64>| -> Vec<u8> {
        range.flat_map(|i| format!("{{\"text\": \"story {i}\"}}\n").into_bytes()).collect()
    };
    [
        ("README.md", b"# stories".to_vec()),
        ("data/train-00000-of-00002.jsonl", lines(0..5)),
        ("data/train-00001-of-00002.jsonl", lines(5..9)),
        ("data/test-00000-of-00001.jsonl", lines(100..101)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

fn store() -> Store {
    let parquet = BTreeMap::from([("train.parquet".to_owned(), parquet_bytes(&["one", "two"]))]);
    let repositories = [
        ("models/tiny/llama", model_files()),
        ("models/tiny/empty", BTreeMap::from([("README.md".into(), b"nothing".to_vec())])),
        ("datasets/tiny/stories", dataset_files()),
        ("datasets/tiny/columns", parquet),
    ];
    let repositories = repositories.map(|(name, files)| (name.to_owned(), files)).into();
    Store { repositories, ..Store::default() }
}

fn parquet_bytes(texts: &[&str]) -> Vec<u8> {
    use parquet::{
        data_type::{ByteArray, ByteArrayType},
        file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };
    let schema =
        Arc::new(parse_message_type("message m { required binary text (UTF8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|t| ByteArray::from(*t)).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn client(endpoint: &str, home: &Path) -> HubArgs {
    HubArgs { hf_endpoint: Some(endpoint.into()), hf_home: Some(home.into()), ..HubArgs::default() }
}

fn offline(endpoint: &str, home: &Path) -> Hub {
    Hub::new(&HubArgs { hf_hub_offline: true, ..client(endpoint, home) })
}

fn stories(source: &str, limit: Option<u64>) -> DatasetSpec {
    DatasetSpec {
        source: source.into(),
        revision: "main".into(),
        split: "train".into(),
        text_field: "text".into(),
        messages: false,
        limit,
    }
}

fn texts(spec: &DatasetSpec, hub: &Hub) -> Result<Vec<String>, TextError> {
    let dataset = Dataset::open(spec, hub)?;
    dataset.documents(0..u64::MAX)?.map(|d| Ok(d?.text)).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_downloaded_once_and_found_again_without_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(store());
    let online = Hub::new(&client(&hub.address, home.path()));
    let small = online.model_dir("tiny/llama", "main", false).unwrap();
    assert_eq!(
        names(&small.dir),
        ["config.json", "model.safetensors.index.json", "tokenizer.json"]
    );
    assert_eq!(small.commit.as_deref(), Some(COMMIT));
    let e = offline(&hub.address, home.path()).model_dir("tiny/llama", "main", true).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains("model-00001-of-00002.safetensors"), "{e}");

    let whole = online.model_dir("tiny/llama", "main", true).unwrap();
    assert_eq!(whole, small);
    let shard = fs_err::read(whole.dir.join("model-00002-of-00002.safetensors")).unwrap();
    assert_eq!(shard, b"weights two");
    assert!(!whole.dir.join("pytorch_model.bin").exists());
    let before = hub.requests().len();
    online.model_dir("tiny/llama", "main", true).unwrap();
    let again = hub.requests().split_off(before);
    assert!(again.iter().all(|r| r.contains("/api/")), "files were fetched again: {again:?}");

    let address = hub.stop();
    let found = offline(&address, home.path()).model_dir("tiny/llama", "main", true).unwrap();
    assert_eq!(found, whole);
    let e = offline(&address, home.path()).model_dir("tiny/other", "main", true).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains("HF_HUB_OFFLINE is set"), "{e}");
    // A hub that went away is no reason to stop when everything is there.
    let fallback = online.model_dir("tiny/llama", "main", true).unwrap();
    assert_eq!(fallback, whole);
}

#[test]
fn a_dataset_downloads_the_files_its_limit_needs() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(store());
    let online = Hub::new(&client(&hub.address, home.path()));
    let few = texts(&stories("tiny/stories", Some(4)), &online).unwrap();
    assert_eq!(few, ["story 0", "story 1", "story 2", "story 3"]);
    assert!(!hub.requests().iter().any(|r| r.contains("train-00001")), "{:?}", hub.requests());
    let cached = offline(&hub.address, home.path());
    assert_eq!(texts(&stories("tiny/stories", Some(4)), &cached).unwrap(), few);
    let e = texts(&stories("tiny/stories", Some(6)), &cached).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    assert!(e.to_string().contains("shard 1 of 2"), "{e}");

    let all = texts(&stories("tiny/stories", None), &online).unwrap();
    assert_eq!(all.len(), 9);
    assert_eq!(texts(&stories("tiny/columns", None), &online).unwrap(), ["one", "two"]);
    hub.stop();
    assert_eq!(texts(&stories("tiny/stories", None), &cached).unwrap(), all);
    assert_eq!(texts(&stories("tiny/columns", None), &cached).unwrap(), ["one", "two"]);
}

#[test]
fn a_token_is_sent_and_a_missing_one_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(Store { token: Some("secret".into()), ..store() });
    let without = client(&hub.address, home.path());
    let e = Hub::new(&without).model_dir("tiny/llama", "main", true).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.hint().unwrap().contains("HF_TOKEN"), "{e}");
    let wrong = HubArgs { hf_token: Some("stale".into()), ..without.clone() };
    let e = Hub::new(&wrong).model_dir("tiny/llama", "main", true).unwrap_err();
    assert!(e.hint().unwrap().contains("not accepted"), "{e}");
    let right = HubArgs { hf_token: Some("secret".into()), ..without };
    Hub::new(&right).model_dir("tiny/llama", "main", true).unwrap();
}

#[test]
fn what_the_hub_does_not_have_is_a_usage_error() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(store());
    let online = Hub::new(&client(&hub.address, home.path()));
    for (id, revision, kind, said) in [
        ("tiny/gone", "main", Kind::Usage, "model `tiny/gone`"),
        ("tiny/llama", "v9", Kind::Usage, "at `v9`"),
        ("tiny/empty", "main", Kind::Input, "has no config.json"),
    ] {
        let e = online.model_dir(id, revision, true).unwrap_err();
        assert!(e.to_string().contains(said), "{e}");
        assert_eq!(e.kind(), kind, "{e}");
    }
    let e = texts(&stories("tiny/gone", None), &online).unwrap_err();
    assert_eq!(e.kind(), Kind::Usage, "{e}");
    let split = DatasetSpec { split: "dev".into(), ..stories("tiny/stories", None) };
    let e = texts(&split, &online).unwrap_err();
    assert!(e.hint().unwrap().contains("test, train"), "{e}");
}

#[test]
fn a_hub_that_fails_for_a_while_is_asked_again() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(Store { failures: AtomicUsize::new(3), ..store() });
    let online = Hub::new(&client(&hub.address, home.path()));
    online.model_dir("tiny/llama", "main", true).unwrap();
}

#[test]
fn an_error_page_is_never_kept_as_a_file() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(Store { broken_bodies: AtomicUsize::new(2), ..store() });
    let online = Hub::new(&client(&hub.address, home.path()));
    let found = online.model_dir("tiny/llama", "main", false).unwrap();
    assert_eq!(fs_err::read(found.dir.join("config.json")).unwrap(), model_files()["config.json"]);

    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(Store { broken_bodies: AtomicUsize::new(1000), ..store() });
    let online = Hub::new(&client(&hub.address, home.path()));
    let e = online.model_dir("tiny/llama", "main", false).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    let left: Vec<PathBuf> = glob_files(home.path());
    assert!(left.iter().all(|f| !f.to_string_lossy().contains("/blobs/")), "{left:?}");
}

fn glob_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|e| if e.path().is_dir() { glob_files(&e.path()) } else { vec![e.path()] })
        .collect()
}

#[test]
fn an_unreachable_hub_is_unavailable_and_the_hint_says_offline() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(store());
    let address = hub.stop();
    let e =
        Hub::new(&client(&address, home.path())).model_dir("tiny/llama", "main", true).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains(&address), "{e}");
    assert!(e.hint().unwrap().contains("HF_HUB_OFFLINE"), "{e}");
}
