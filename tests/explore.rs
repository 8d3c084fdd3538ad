//! Stage 05 over real runs and real sockets: who is let in, what is refused, what is answered.

mod client;
mod generate;
mod hostile;
mod load;
mod page;
mod plant;
mod schema;

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::workload::{EXPLORE, SAVE, TOP, TRAIN, succeed};
use client::Server;

/// A store with SAEs of two hooks of the demo model, and what stage 03 says of one of them.
pub struct Demo {
    dir: tempfile::TempDir,
}

/// Latents of the SAEs.
pub const D_SAE: usize = 1024;

impl Demo {
    pub fn new() -> Self {
        let demo = Self { dir: tempfile::tempdir().unwrap() };
        demo.stage(SAVE, &[("HOOK", "resid_pre,mlp_out")]);
        demo.stage(TRAIN, &[("HOOK", "mlp_out"), ("SAE_RUN_ID", "second")]);
        demo.stage(TRAIN, &[("HOOK", "resid_pre"), ("SAE_RUN_ID", "first")]);
        plant::top_sentences(&demo.run("first"), D_SAE, plant::Size::SMALL);
        plant::names(&demo.run("first"), D_SAE);
        demo
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.store().join("runs").join(name)
    }

    fn settings(&self) -> Vec<(&'static str, PathBuf)> {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo"));
        vec![
            ("STORE_DIR", self.store()),
            ("CONFIG", demo.join("demo.yaml")),
            ("MODEL_ID", demo.join("model")),
            ("HF_DATASET", demo.join("text/demo.jsonl")),
            ("DATA_LIMIT", "1500".into()),
            ("EPOCHS", "2".into()),
            ("RUN_ID", "cap".into()),
            ("RAYON_NUM_THREADS", "2".into()),
        ]
    }

    fn stage(&self, binary: &str, variables: &[(&str, &str)]) -> (String, String) {
        succeed(self.command(binary).envs(variables.iter().copied()))
    }

    pub fn command(&self, binary: &str) -> Command {
        let mut command = Command::new(binary);
        command.env_clear().envs(self.settings()).current_dir(self.dir.path());
        command
    }

    /// Stage 05 over this store.
    pub fn serve(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self.command(EXPLORE).envs(variables.iter().copied()))
    }
}

/// Settings, the exit code, and words of what is said.
type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a str);

#[test]
fn every_answer_is_as_the_interface_is_described() {
    let demo = Demo::new();
    demo.stage(TOP, &[("SAE_RUN_ID", "second")]);
    plant::training(&demo.run("bare"), 64);
    let server = demo.serve(&[]);
    let api = schema::Api::new(server.get("/api/openapi.json").json());
    assert_eq!(server.get("/api/saes").json()["newest"], "first");
    // The index first, so that nothing is null for want of it.
    server.indexed("first");
    server.indexed("second");
    let strongest = "/api/saes/second/latents?sort=max&descending=true&limit=500";
    let strongest = server.get(strongest).json()["rows"][0].clone();
    let own = format!("/api/saes/second/latents/{}", strongest["latent"]);
    let record = server.get(&own).json()["record"].clone();
    let sentence = record["top"]["max"][0]["sentence"].clone();
    let named = server.get(&format!("/api/saes/second/sentences/{sentence}")).json();
    let latents = named["latents"].as_array().unwrap();
    assert!(latents.iter().any(|l| l["latent"] == strongest["latent"]), "{named}");
    let tokens = named["sentence"]["tokens"].as_array().unwrap();
    assert!(tokens.contains(&strongest["token"]), "{strongest} {named}");
    let addresses = [
        ("/api/runs", "/api/runs"),
        ("/api/saes", "/api/saes"),
        ("/api/saes/{sae}", "/api/saes/first"),
        ("/api/saes/{sae}", "/api/saes/bare"),
        ("/api/saes/{sae}", "/api/saes/second"),
        ("/api/saes/{sae}/latents", "/api/saes/second/latents?limit=500"),
        ("/api/saes/{sae}/latents/{latent}", own.as_str()),
        ("/api/saes/{sae}/latents", "/api/saes/first/latents?limit=500&sort=label&descending=true"),
        ("/api/saes/{sae}/latents", "/api/saes/first/latents?text=word&strongest=w&dead=no&name=a"),
        ("/api/saes/{sae}/latents/{latent}", "/api/saes/first/latents/7"),
        ("/api/saes/{sae}/latents/{latent}", "/api/saes/first/latents/0"),
        ("/api/saes/{sae}/latents/{latent}/strength", "/api/saes/first/latents/7/strength"),
        ("/api/saes/{sae}/latents/{latent}/strength", "/api/saes/bare/latents/7/strength"),
        ("/api/saes/{sae}/sentences/{sentence}", "/api/saes/first/sentences/14"),
        ("/api/search", "/api/search?q=WORD&limit=20"),
        ("/api/compare", "/api/compare?left=first&right=second&latent=7&k=5"),
    ];
    for (path, address) in addresses {
        let answer = server.get(address);
        assert_eq!(answer.status, 200, "{address}: {}", answer.text());
        api.check("get", path, 200, &answer.json());
    }
    let complete = json!({"text": "The old house", "saes": ["first", "second"], "top": 5});
    let answer = server.post("/api/complete", &complete);
    api.check("post", "/api/complete", 200, &answer.json());
    assert_eq!(answer.json()["tokens"][2]["latents"]["first"].as_array().unwrap().len(), 5);
    for event in server.events(&json!({"text": "The old house", "max_tokens": 5})) {
        api.check_schema("Event", &event);
    }
    for (path, address, status) in [
        ("/api/saes/{sae}", "/api/saes/gone", 404),
        ("/api/saes/{sae}/latents", "/api/saes/bare/latents", 404),
        ("/api/saes/{sae}/latents", "/api/saes/first/latents?sort=size", 400),
        ("/api/saes/{sae}/latents", "/api/saes/first/latents?strongset=a", 400),
        ("/api/saes/{sae}/latents", "/api/saes/first/latents?offset=-1", 400),
        ("/api/saes/{sae}/latents/{latent}", "/api/saes/first/latents/1024", 404),
        ("/api/saes/{sae}/sentences/{sentence}", "/api/saes/first/sentences/1", 404),
        ("/api/search", "/api/search", 400),
        ("/api/search", "/api/search?q=", 400),
        ("/api/compare", "/api/compare?left=first&right=second&latent=7&k=51", 400),
    ] {
        let answer = server.get(address);
        assert_eq!(answer.status, status, "{address}: {}", answer.text());
        api.check("get", path, status, &answer.json());
    }
}

#[test]
fn only_those_with_the_token_are_let_in_and_every_answer_protects_the_page() {
    let demo = Demo::new();
    let server = demo.serve(&[]);
    let bare = |address: &str, headers: &str| {
        server.raw(&format!(
            "GET {address} HTTP/1.1\r\nhost: {}\r\n{headers}connection: close\r\n\r\n",
            server.address
        ))
    };
    for address in
        ["/", "/api/saes", "/assets/x/app.js", "/api/openapi.json", "/nothing", "/api/saes?token=x"]
    {
        let answer = bare(address, "");
        assert_eq!(answer.status, 401, "{address}");
        assert!(answer.json()["hint"].as_str().unwrap().contains("token"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let page = bare(&format!("/?token={}", server.token), "");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    let cookie = page.header("set-cookie").unwrap().split(';').next().unwrap();
    assert_eq!(bare("/api/saes", &format!("cookie: {cookie}\r\n")).status, 200);
    assert_eq!(
        bare("/api/saes", &format!("authorization: Bearer {}\r\n", server.token)).status,
        200
    );
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let text = page.text();
    let names = text.split("\"assets/").skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in names {
        let asset = bare(&format!("/assets/{name}"), &format!("cookie: {cookie}\r\n"));
        assert_eq!(asset.status, 200, "{name}");
        assert!(asset.header("content-type").unwrap().starts_with("text/"), "{name}");
        assert!(asset.header("cache-control").unwrap().contains("immutable"), "{name}");
    }
    assert_eq!(bare("/assets/x/app.js", &format!("cookie: {cookie}\r\n")).status, 404);
    let rebound = server.raw(&format!(
        "GET /?token={} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        server.token
    ));
    assert_eq!(rebound.status, 421);

    let open = demo.serve(&[("NO_AUTH", "1")]);
    assert_eq!(open.token, "");
    assert_eq!(open.get("/api/saes").status, 200);
    let foreign = "POST /api/complete HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(open.raw(foreign).status, 415, "what another site's form may send");
}

#[test]
fn a_job_says_how_to_reach_it() {
    let demo = Demo::new();
    let user = [("SLURM_JOB_ID", "7"), ("USER", "me"), ("TUNNEL_HOST", "login.example")];
    let said = |variables: &[(&str, &str)]| {
        let mut command = demo.command(EXPLORE);
        command.envs(user).envs(variables.iter().copied()).env("EXPLORE_PORT", "0");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(3);
        let lines: Vec<String> = lines.collect::<Result<_, _>>().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        lines
    };
    let near = said(&[]);
    let address = near[2].strip_prefix("http://127.0.0.1:").unwrap();
    let (port, _) = address.split_once("/?token=").unwrap();
    let command = format!("  ssh -N -L {port}:127.0.0.1:{port} -J me@login.example me@");
    assert!(near[1].starts_with(&command), "{near:?}");
    let far = said(&[("LISTEN", "0.0.0.0")]);
    assert!(far[1].ends_with(" me@login.example") && !far[1].contains(" -J "), "{far:?}");
    assert!(far[2].starts_with("http://127.0.0.1:"), "{far:?}");
}

#[test]
fn a_server_that_cannot_be_is_refused_and_one_that_can_ends_when_asked() {
    let demo = Demo::new();
    let refused = |variables: &[(&str, &str)]| {
        let output = demo.command(EXPLORE).envs(variables.iter().copied()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let server = demo.serve(&[]);
    let port = server.address.port().to_string();
    let empty = tempfile::tempdir().unwrap();
    let none = empty.path().to_str().unwrap();
    let cases: [Case<'_>; 7] = [
        (&[("NO_AUTH", "1"), ("LISTEN", "0.0.0.0")], 2, "NO_AUTH lets in everybody"),
        (&[("LISTEN", "no.such.host.invalid")], 2, "LISTEN is `no.such.host.invalid`"),
        (&[("SAE_RUN_ID", "gone")], 2, "SAE_RUN_ID names run `gone`"),
        (&[("SAE_RUN_ID", "cap")], 2, "no complete training"),
        (&[("EXPLORE_PORT", &port)], 69, "cannot listen"),
        (&[("STORE_DIR", none)], 65, "no complete training"),
        (&[("EXPLORE_PORT", "70000")], 2, "70000"),
    ];
    for (variables, code, words) in cases {
        let (found, said) = refused(variables);
        assert_eq!(found, code, "{variables:?}: {said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{said}");
    }
    let (checked, _) = demo.stage(EXPLORE, &[("CHECK", "1"), ("SAE_RUN_ID", "second")]);
    for words in
        ["first       second", "latents     1,024", "has no top sentences", "configs/demo/model"]
    {
        assert!(checked.contains(words), "`{words}` is missing from {checked}");
    }
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn nothing_is_written_into_the_store() {
    let demo = Demo::new();
    let before = super::workload::Contents::read(&demo.store());
    let server = demo.serve(&[]);
    server.indexed("first");
    let complete = server.post("/api/complete", &json!({"text": "A dog", "saes": ["first"]}));
    assert_eq!(complete.status, 200);
    let labels: Vec<Value> =
        server.get("/api/saes/first/latents?named=only").json()["rows"].as_array().unwrap().clone();
    assert!(labels.iter().all(|row| row["label"].is_string()) && !labels.is_empty());
    server.end();
    let after = super::workload::Contents::read(&demo.store());
    after.assert_same(&before, "a visit");
    assert_eq!(before.0.len(), after.0.len());
}
