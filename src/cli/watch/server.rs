//! The server of the page: HTTP/1.1 on a thread of its own, GET and HEAD alone.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page |
//! | `/events` | server-sent events: first all that is known, then what is new; `id` is where to go on |
//! | `/picture/RUN/NAME` | a picture of the list that the page was told |

use std::convert::Infallible;
use std::net;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::{self, Stream};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Feeds;
use super::guard::{Guard, check};
use super::page::page;
use crate::error::{Error, Result, lock};
use crate::files;

/// Connections at a time; a browser opens some six for each page.
const MOST_CONNECTIONS: usize = 64;
/// Longest head of a request, and how long it may take to come.
const MOST_HEAD: usize = 8 << 10;
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long events are sent before the page asks anew, and how long a connection lives at most: one to a
/// machine that sleeps would stay for ever.
const EVENTS_TIME: Duration = Duration::from_mins(5);
const LIFE: Duration = Duration::from_mins(6);
/// How often runs are looked at while somebody watches.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest picture that is sent.
const MOST_PICTURE: u64 = 64 << 20;

type Shared = Arc<Mutex<Feeds>>;

/// Serves until the program ends.
///
/// # Errors
/// When the system gives no means to.
pub fn serve(listener: net::TcpListener, guard: Guard, feeds: Feeds) -> Result<()> {
    let cannot = |e| Error::new("the page cannot be served").caused_by(e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).map_err(cannot)?;
        accept(listener, router(guard, feeds)).await;
        Ok(())
    })
}

fn router(guard: Guard, feeds: Feeds) -> Router {
    Router::new()
        .route("/", get(|| async { Html(page(None)) }))
        .route("/events", get(events))
        .route("/picture/{run}/{name}", get(picture))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(from_fn_with_state(guard, check))
        .with_state(Arc::new(Mutex::new(feeds)))
}

async fn accept(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, perhaps, for a while.
            sleep(PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(MOST_HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // What a client does wrong is its own affair.
            let _ = timeout(LIFE, connection).await;
            drop(slot);
        });
    }
}

async fn events(
    State(feeds): State<Shared>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let cursor = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let began = Instant::now();
    let next = move |(feeds, cursor): (Shared, Option<String>)| async move {
        while began.elapsed() < EVENTS_TIME {
            let update = lock(&feeds).update(cursor.as_deref());
            let event = update.and_then(|update| {
                let text = serde_json::to_string(&update).ok()?;
                Some((Event::default().id(&update.cursor).data(text), update.cursor))
            });
            match event {
                Some((event, cursor)) => return Some((Ok(event), (feeds, Some(cursor)))),
                None => sleep(PAUSE).await,
            }
        }
        None
    };
    Sse::new(stream::unfold((feeds, cursor), next)).keep_alive(KeepAlive::new().interval(HEAD_TIME))
}

/// A picture by its place in the list; the request's text is never part of a path.
async fn picture(State(feeds): State<Shared>, Path((run, name)): Path<(String, String)>) -> Response {
    let path = run.parse().ok().and_then(|run| lock(&feeds).picture(run, &name).map(ToOwned::to_owned));
    match path.and_then(|path| files::read(&path, MOST_PICTURE).ok()) {
        Some(png) => {
            let headers =
                [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=86400")];
            (headers, png).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
