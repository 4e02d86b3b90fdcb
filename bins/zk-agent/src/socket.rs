//! The local socket: data of other programs, sealed as this device's own.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Gid, getegid, geteuid, getgroups};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};
use zk_envelope::StreamId;
use zk_sensors::Readings;

use crate::Error;
use crate::config::SocketTable;
use crate::serve::{AGE, Server, http, next};

/// The most bytes of data in a record of its own: 62 KiB. A message has at most
/// 128 KiB (`zk_envelope::MAX_MESSAGE`) and carries everything in hexadecimal; this
/// much fits for every device, content type and number of owners.
pub const MAX_DATA: usize = 62 << 10;

/// Data of another program, which waits for what becomes of it.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// What became of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is on disk, under this number.
    Taken { stream: StreamId, sequence: u64 },
    /// The spool has no room for it now.
    Full,
    /// The spool would never have.
    TooLarge,
}

/// Takes data on a socket until dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Ends before the name goes.
    server: Option<Server>,
    name: Name,
}

impl Socket {
    /// `offer` hands data to who seals it, or says that too much waits there.
    pub(crate) fn serve(
        path: &Path,
        group: Option<&str>,
        offer: impl Fn(Data) -> bool + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let group = group.map(group_id).transpose()?;
        let (listener, name) = bind(path, group).map_err(|source| Error::Socket {
            path: path.into(),
            source,
        })?;
        let serve = async move |stopped| run(listener, Arc::new(offer), stopped).await;
        let server = Server::spawn("socket", serve)?;
        tracing::info!(path = %path.display(), "taking data of other programs");
        Ok(Self {
            server: Some(server),
            name,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(self.server.take());
        self.name.remove();
    }
}

/// Where a socket is found, for as long as it is this one.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// The file system and the file there.
    file: (u64, u64),
}

impl Name {
    fn remove(&self) {
        let there = fs::symlink_metadata(&self.path);
        // Of another agent, if somebody removed this one's.
        if there.is_ok_and(|there| (there.dev(), there.ino()) == self.file) {
            // It may be gone already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket for the agent's user and the members of `group`. Nobody can connect before it
/// has its mode.
fn bind(path: &Path, group: Option<u32>) -> io::Result<(UnixListener, Name)> {
    if left_behind(path)? {
        fs::remove_file(path)?;
    }
    let listener = socket()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    let there = fs::symlink_metadata(path)?;
    let name = Name {
        path: path.into(),
        file: (there.dev(), there.ino()),
    };
    let opened = chown(path, None, group)
        .map_err(|error| {
            let why = format!(
                "it can't be given its group, of which the agent's user has to be one: {error}"
            );
            io::Error::new(error.kind(), why)
        })
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o660)))
        .and_then(|()| Ok(rustix::net::listen(&listener, BACKLOG)?));
    match opened {
        Ok(()) => Ok((listener.into(), name)),
        Err(error) => {
            name.remove();
            Err(error)
        }
    }
}

/// Whether a socket is at this path that an agent which was killed left behind. An error
/// if there can be none: because somebody listens there, or something else is there.
pub(crate) fn left_behind(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let Ok(there) = fs::symlink_metadata(path) else {
        return Ok(false);
    };
    if !there.file_type().is_socket() {
        let why = "there is something else at this path, which is left alone";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match rustix::net::connect(socket()?, &address) {
        // Anything else says that somebody listens, or that it can't be known.
        Err(Errno::CONNREFUSED) => Ok(true),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Whether this user may give a file to this group.
pub(crate) fn may_give(group: u32) -> bool {
    let own = |id: Gid| id.as_raw() == group;
    geteuid().is_root()
        || own(getegid())
        || getgroups().is_ok_and(|groups| groups.into_iter().any(own))
}

/// A group of this system, by its name or number.
pub(crate) fn group_id(group: &str) -> Result<u32, Error> {
    let unknown = || Error::Group {
        group: group.to_owned(),
    };
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let path = Path::new("/etc/group");
    let groups = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1))?
    });
    id.and_then(|id| id.parse().ok()).ok_or_else(unknown)
}

/// Accepts connections until told to stop; then those that wait for an answer still
/// get it, if it comes at once.
async fn run(
    listener: UnixListener,
    offer: Arc<impl Fn(Data) -> bool + Send + Sync + 'static>,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the socket takes no data"),
    };
    let places = Arc::new(Semaphore::new(MAX_PEERS as usize));
    let (end, ending) = watch::channel(());
    loop {
        let accepted = tokio::select! {
            // A sender that is gone says the same as one that sends.
            _ = &mut stopped => break,
            accepted = next(&places, listener.accept()) => accepted,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let (offer, mut ending) = (Arc::clone(&offer), ending.clone());
        tokio::spawn(async move {
            let last = ending.clone();
            let service = service_fn(|request| {
                let (offer, ending) = (Arc::clone(&offer), last.clone());
                async move { Ok::<_, Infallible>(answer(request, &*offer, ending).await) }
            });
            let mut serving = pin!(http(SILENCE).serve_connection(TokioIo::new(stream), service));
            let ended = tokio::select! {
                ended = &mut serving => ended,
                () = sleep(AGE) => Ok(()),
                _ = ending.changed() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection for data ended");
            }
            drop(place);
        });
    }
    drop(end);
    // All of them: nobody is connected any more.
    let _ = timeout(2 * LAST_WORDS, places.acquire_many(MAX_PEERS)).await;
}

/// `POST /records`: one record of the body, of the content type that the header says.
async fn answer(
    request: Request<Incoming>,
    offer: &impl Fn(Data) -> bool,
    ending: watch::Receiver<()>,
) -> Response<Full<Bytes>> {
    let outcome = match (request.method(), request.uri().path()) {
        (&Method::POST, "/records") => take(request, offer, ending).await,
        (_, "/records") => Err(Refusal::Method),
        _ => Err(Refusal::Path),
    };
    let (status, body) = match outcome {
        Ok((stream, sequence)) => {
            let body = json!({ "stream": stream.to_string(), "sequence": sequence });
            (StatusCode::CREATED, body)
        }
        Err(refusal) => refusal.response(),
    };
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

async fn take(
    request: Request<Incoming>,
    offer: &impl Fn(Data) -> bool,
    mut ending: watch::Receiver<()>,
) -> Result<(StreamId, u64), Refusal> {
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let content_type = content_type.filter(|value| (1..=255).contains(&value.len()));
    let content_type = content_type.ok_or(Refusal::ContentType)?.to_owned();
    let body = request.into_body();
    if body.size_hint().lower() > MAX_DATA as u64 {
        return Err(Refusal::TooLarge);
    }
    let body = match timeout(SILENCE, Limited::new(body, MAX_DATA).collect()).await {
        Err(_) => return Err(Refusal::Slow),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Refusal::TooLarge);
        }
        // nobody will read it
        Ok(Err(_)) => return Err(Refusal::Empty),
        Ok(Ok(body)) => body.to_bytes(),
    };
    if body.is_empty() {
        return Err(Refusal::Empty);
    }
    // What a thermometer said is for the agent alone to say: its readers take the word of
    // whoever seals it.
    if content_type == READINGS && serde_json::from_slice::<Readings>(&body).is_ok() {
        return Err(Refusal::Readings);
    }
    let (answer, answered) = oneshot::channel();
    let data = Data {
        content_type,
        body,
        answer,
    };
    if !offer(data) {
        return Err(Refusal::Busy);
    }
    let answered = tokio::select! {
        answered = answered => answered,
        () = async {
            // An error: nobody is there to say more than that it ends.
            let _ = ending.changed().await;
            sleep(LAST_WORDS).await;
        } => return Err(Refusal::Stopping),
    };
    match answered {
        Ok(Answer::Taken { stream, sequence }) => Ok((stream, sequence)),
        Ok(Answer::Full) => Err(Refusal::Full),
        Ok(Answer::TooLarge) => Err(Refusal::TooLarge),
        Err(_) => Err(Refusal::Stopping),
    }
}

/// Why data is not taken.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Busy,
    ContentType,
    Empty,
    Full,
    Method,
    Path,
    Readings,
    Slow,
    Stopping,
    TooLarge,
}

impl Refusal {
    fn response(self) -> (StatusCode, Value) {
        let (status, name, message) = match self {
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "too much waits to be sealed; try again later",
            ),
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-type",
                "say what it is, by Content-Type, in 1 to 255 characters of printable ASCII",
            ),
            Self::Empty => (
                StatusCode::BAD_REQUEST,
                "empty",
                "there is no data, or it broke off; send 1 byte to 62 KiB",
            ),
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "spool-full",
                "the spool or its disk is full; see to the link, or give spool.cap more",
            ),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "POST data to /records",
            ),
            Self::Path => (StatusCode::NOT_FOUND, "path", "POST data to /records"),
            Self::Readings => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "readings",
                "readings of thermometers are the agent's own to seal; publish other data, or give \
                 it another form",
            ),
            Self::Slow => (
                StatusCode::REQUEST_TIMEOUT,
                "slow",
                "the data did not come within 30 s",
            ),
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "the agent is ending, and it is not known whether it was taken; try again later",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "a record holds 62 KiB of data at most, and no more than spool.cap permits; split \
                 it into smaller parts",
            ),
        };
        (status, json!({ "error": name, "message": message }))
    }
}

/// The socket's settings, if there is to be one.
impl SocketTable {
    pub(crate) fn serve(
        &self,
        offer: impl Fn(Data) -> bool + Send + Sync + 'static,
    ) -> Result<Option<Socket>, Error> {
        let socket = |path| Socket::serve(path, self.group.as_deref(), offer);
        self.listen.as_deref().map(socket).transpose()
    }
}

/// The content type of the agent's own readings.
const READINGS: &str = "application/json";

/// Connections at a time, how long each may be silent, and those that wait to be one of
/// them.
const MAX_PEERS: u32 = 16;
const SILENCE: Duration = Duration::from_secs(30);
const BACKLOG: i32 = 128;

/// How long data that waits when the agent ends has to be sealed, and then its sender
/// to read the answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
