//! Addresses and the handlers behind them.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request, State,
        rejection::PathRejection,
    },
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::IntoResponse,
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};

use super::{
    answer::{Answer, Refusal, json, raw},
    assets,
    browse::{Library, Opened},
    catalog, compare, complete, detail,
    engine::Engine,
    generate::{self, Lines},
    guard, search, strength, table,
};
use crate::stage::StopFlag;

/// Bytes of a request's body at most.
const BODY: usize = 256 << 10;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long reading files may take.
const READING: Duration = Duration::from_secs(60);

/// What handlers share.
#[derive(Debug)]
pub(super) struct App {
    pub guard: guard::Guard,
    pub library: Library,
    pub engine: Engine,
    pub stop: StopFlag,
}

type Shared = State<Arc<App>>;
type Segment = Result<Path<String>, PathRejection>;
type Segments = Result<Path<(String, String)>, PathRejection>;

/// All addresses.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { typed(assets::HTML, Bytes::from(assets::page())) }))
        .route("/assets/{version}/{name}", get(asset))
        .route("/api/openapi.json", get(|| async { typed(assets::JSON, assets::OPENAPI) }))
        .route("/api/runs", get(runs))
        .route("/api/saes", get(saes))
        .route("/api/saes/{sae}", get(sae))
        .route("/api/saes/{sae}/latents", get(latents))
        .route("/api/saes/{sae}/latents/{latent}", get(latent))
        .route("/api/saes/{sae}/latents/{latent}/strength", get(strength_of))
        .route("/api/saes/{sae}/sentences/{sentence}", get(sentence))
        .route("/api/search", get(search_all))
        .route("/api/compare", get(compare_two))
        .route("/api/complete", post(complete_text))
        .route("/api/generate", post(generate_text))
        .fallback(|| async { Refusal::missing("there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this address has another method")
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(app.clone(), guarded))
        .with_state(app)
}

/// Lets requests in, and adds to every answer what keeps the page safe.
async fn guarded(State(app): Shared, request: Request, next: Next) -> Response<Body> {
    let mut response = match app.guard.admit(request.uri(), request.headers()) {
        Err(refusal) => refusal.into_response(),
        Ok(cookie) => {
            let mut response = next.run(request).await;
            if let Some(cookie) = cookie {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
    };
    guard::protect(response.headers_mut());
    response
}

fn typed(media: &'static str, bytes: impl Into<Body>) -> Response<Body> {
    ([(header::CONTENT_TYPE, media)], bytes.into()).into_response()
}

/// A file of the page; at an address with its version it never changes.
async fn asset(path: Segments) -> Answer<Response<Body>> {
    let (version, name) = part(path)?;
    let (media, bytes) = assets::find(&version, &name)
        .ok_or_else(|| Refusal::missing("there is no such file, or it has another version"))?;
    let mut response = typed(media, Bytes::from_static(bytes));
    let forever = HeaderValue::from_static("private, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, forever);
    Ok(response)
}

/// Parameters of an address.
struct Query<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        // The guard has dealt with the token; whatever else is not known is a mistake.
        let pairs = parts.uri.query().unwrap_or_default().split('&');
        let rest: Vec<&str> = pairs.filter(|pair| !pair.starts_with("token=")).collect();
        let uri = format!("/?{}", rest.join("&")).parse().map_err(|_| Refusal::bad("no query"))?;
        let query = axum::extract::Query::<T>::try_from_uri(&uri);
        let query = query.map_err(|e| Refusal::bad(e.body_text()))?;
        Ok(Self(query.0))
    }
}

/// Work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let mut work = Abandoned(tokio::task::spawn_blocking(work));
    (&mut work.0).await.unwrap_or_else(|e| {
        tracing::error!("a request failed: {e}");
        Err(defect())
    })
}

/// Work that is not begun any more once nobody waits for it.
struct Abandoned<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Abandoned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn defect() -> Refusal {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Refusal::new(status, "a defect of this program; its log says more")
}

/// Files read for an answer.
async fn reading<T: Send + 'static>(
    app: Arc<App>,
    work: impl FnOnce(&Library) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let work = blocking(move || work(&app.library));
    tokio::time::timeout(READING, work).await.unwrap_or_else(|_| {
        let what = format!("reading took longer than {} s", READING.as_secs());
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, what).retry(10))
    })
}

/// As [`reading`], of one SAE.
async fn of_sae<T: Send + 'static>(
    app: Arc<App>,
    sae: String,
    work: impl FnOnce(&Library, &Opened) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    reading(app, move |library| work(library, &library.open(&sae)?)).await
}

fn shown<T: Serialize>(value: &T) -> Response<Body> {
    json(StatusCode::OK, value)
}

fn part<T>(path: Result<Path<T>, PathRejection>) -> Answer<T> {
    path.map(|Path(part)| part).map_err(|e| Refusal::missing(e.body_text()))
}

async fn runs(State(app): Shared) -> Answer<Response<Body>> {
    reading(app, |library| Ok(shown(&library.runs()?))).await
}

async fn saes(State(app): Shared) -> Answer<Response<Body>> {
    reading(app, |library| Ok(shown(&library.list()?))).await
}

async fn sae(State(app): Shared, sae: Segment) -> Answer<Response<Body>> {
    of_sae(app, part(sae)?, |library, opened| Ok(shown(&library.detail(opened)?))).await
}

async fn latents(
    State(app): Shared,
    sae: Segment,
    Query(query): Query<table::Query>,
) -> Answer<Response<Body>> {
    let work = move |library: &_, opened: &_| Ok(shown(&table::page(library, opened, &query)?));
    of_sae(app, part(sae)?, work).await
}

async fn latent(State(app): Shared, path: Segments) -> Answer<Response<Body>> {
    let (sae, latent) = part(path)?;
    of_sae(app, sae, move |_, opened| {
        Ok(raw(StatusCode::OK, detail::latent(opened, opened.latent(&latent)?)?))
    })
    .await
}

async fn strength_of(State(app): Shared, path: Segments) -> Answer<Response<Body>> {
    let (sae, latent) = part(path)?;
    of_sae(app, sae, move |library, opened| {
        Ok(shown(&strength::strength(library, opened, opened.latent(&latent)?)?))
    })
    .await
}

async fn sentence(State(app): Shared, path: Segments) -> Answer<Response<Body>> {
    let (sae, number) = part(path)?;
    let work =
        move |library: &_, opened: &_| Ok(shown(&detail::sentence(library, opened, &number)?));
    of_sae(app, sae, work).await
}

async fn search_all(
    State(app): Shared,
    Query(query): Query<search::Query>,
) -> Answer<Response<Body>> {
    reading(app, move |library| Ok(shown(&search::search(library, &query)?))).await
}

async fn compare_two(
    State(app): Shared,
    Query(query): Query<compare::Query>,
) -> Answer<Response<Body>> {
    reading(app, move |library| Ok(shown(&compare::compare(library, &query)?))).await
}

/// A request's body, within limits of size and time.
async fn body<T: DeserializeOwned>(request: Request) -> Answer<T> {
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media = media.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
    // What another site's form may send is no JSON.
    if !media.eq_ignore_ascii_case("application/json") {
        let what = format!("the body is `{}`, not application/json", catalog::shown(media));
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, &())).await;
    let bytes = bytes.map_err(|_| {
        let what = format!("the body took longer than {} s", BODY_TIME.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, what)
    })?;
    let bytes = bytes.map_err(|e| Refusal::new(e.status(), e.body_text()))?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::bad(format!("the body: {e}")))
}

async fn complete_text(State(app): Shared, request: Request) -> Answer<Response<Body>> {
    let request: complete::Request = body(request).await?;
    request.check()?;
    let turn = app.engine.gate.enter()?.turn().await;
    let (sender, answer) = oneshot::channel();
    let work = blocking(move || {
        let wanted = || match () {
            () if app.stop.requested() => Err(Refusal::stopped()),
            () if sender.is_closed() => Err(Refusal::gone()),
            () => Ok(()),
        };
        let completed = complete::complete((&app.library, &app.engine), &request, &wanted);
        drop(turn);
        // Whoever asked may have gone.
        drop(sender.send(completed.map(|completed| shown(&completed))));
        Ok(())
    });
    work.await?;
    answer.await.unwrap_or_else(|_| Err(Refusal::gone()))
}

async fn generate_text(State(app): Shared, request: Request) -> Answer<Response<Body>> {
    let request: generate::Request = body(request).await?;
    request.check()?;
    let turn = app.engine.gate.enter()?.turn().await;
    let (sender, receiver) = mpsc::channel(request.lines());
    let (ready, answer) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let lines = Lines { sender, stop: app.stop.clone() };
        generate::generate((&app.library, &app.engine), &request, &lines, ready);
        drop(turn);
    });
    // A sender that is dropped without a word has panicked.
    answer.await.unwrap_or_else(|_| Err(defect()))?;
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
