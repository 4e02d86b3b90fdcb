//! The running agent: its socket, where it takes data and keeps it until it is
//! delivered, and its pages.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use crate::Error;

/// The stream and the number that the agent gave the data, which is on its disk then.
/// `None`: no agent is there.
pub(crate) fn hand_over(
    socket: &Path,
    content_type: &str,
    data: Vec<u8>,
    limit: Duration,
) -> Result<Option<(String, u64)>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let refused = |error: String, message: String| Error::AgentRefused {
        socket: socket.into(),
        error,
        message,
    };
    let exchange = async {
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(error) if is_absent(&error) => return Ok(None),
                // so many wait there already
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
                Err(source) => {
                    let socket = socket.into();
                    return Err(Error::AgentSocket { socket, source });
                }
            }
        };
        let broken =
            |error: &dyn std::error::Error| refused("broken off".to_owned(), error.to_string());
        let request = Request::post("/records")
            .header(HOST, "zk-agent")
            .header(CONTENT_TYPE, content_type)
            .header(CONNECTION, "close")
            .body(Full::<Bytes>::from(data))
            .map_err(|error| broken(&error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        // what fails there fails the request too
        tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| broken(&error))?;
        let taken = answer.status().is_success();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| broken(&*error))?.to_bytes();
        let json: Value = serde_json::from_slice(&body).map_err(|error| broken(&error))?;
        let text = |member: &str| json[member].as_str().map(str::to_owned);
        match (taken, text("stream"), json["sequence"].as_u64()) {
            (true, Some(stream), Some(sequence)) => Ok(Some((stream, sequence))),
            _ => Err(refused(
                text("error").unwrap_or_default(),
                text("message").unwrap_or_default(),
            )),
        }
    };
    runtime
        .block_on(async { timeout(limit, exchange).await })
        .unwrap_or_else(|_| {
            Err(Error::AgentSilent {
                socket: socket.into(),
            })
        })
}

/// A page that it serves, `/metrics` or `/healthz`: the status, and the text.
pub(crate) fn page(listen: SocketAddr, path: &str) -> io::Result<(StatusCode, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = async {
        let stream = TcpStream::connect(listen).await?;
        let request = Request::get(path)
            .header(HOST, listen.to_string())
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // what fails there fails the request too
        tokio::spawn(connection);
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    runtime.block_on(async {
        timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    })
}

/// Nobody listens there, though a socket may have been left behind.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// Until it is tried again whether there is a place to wait at.
const PAUSE: Duration = Duration::from_millis(100);

const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a page of metrics.
const LARGEST: usize = 1 << 20;

/// An answer is a few words.
const MAX_ANSWER: usize = 64 << 10;
