//! DynamoDB inside the process: the SDK's requests go to an engine on a SQLite
//! file, over no socket.
//!
//! One thread owns the engine and answers in the order of arrival. Puts that
//! wait together are committed together, so that they share one sync of the
//! disk; each still gets the answer that it would get alone.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::actions::transact_write_items::{
    TransactPut, TransactWriteItem, TransactWriteItemsRequest,
};
use dynoxide::{Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::StoreError;

/// Opens the engine on the file `path`, which must exist.
pub(crate) async fn open(path: &Path) -> Result<SharedHttpClient, StoreError> {
    let path = std::path::absolute(path).map_err(|source| StoreError::file(path, source))?;
    let (jobs, inbox) = mpsc::channel();
    let (opened, is_open) = oneshot::channel();
    std::thread::Builder::new()
        .name("zk-store".into())
        .spawn({
            let path = path.clone();
            move || match open_database(&path) {
                Ok(db) => {
                    // If nobody waits any more, the inbox is closed as well.
                    let _ = opened.send(Ok(()));
                    serve(&db, &inbox);
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })
        .map_err(|source| StoreError::file(&path, source))?;
    match is_open.await {
        Ok(result) => result?,
        Err(_) => {
            let source = io::Error::other("the engine stopped while it opened the file");
            return Err(StoreError::file(&path, source));
        }
    }
    let connector = SharedHttpConnector::new(Connector { jobs });
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// Makes the file `path` and the directories above it, as far as they are
/// missing: for the owner alone, and durable before it returns.
pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::file(path, source);
    let path = std::path::absolute(path).map_err(fail)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(fail)?;
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    // Only ever a new file: to open and close one that SQLite has open in this
    // process would drop SQLite's locks on it (POSIX locks belong to the process).
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
    {
        Ok(file) => file.sync_all().map_err(fail)?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(fail(e)),
    }
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(fail)
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let fail = |source| StoreError::file(path, source);
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::NoStore {
                path: path.to_owned(),
            });
        }
        Err(e) => return Err(fail(e)),
    };
    if !found.is_file() {
        return Err(fail(io::Error::other("not a regular file")));
    }
    if found.mode() & 0o002 != 0 {
        return Err(StoreError::Writable {
            path: path.to_owned(),
        });
    }
    let name = path
        .to_str()
        .ok_or_else(|| fail(io::Error::other("the path is not UTF-8")))?;
    Database::new(name).map_err(|source| StoreError::Engine {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Hands requests to the engine's thread. The thread ends, and the file is
/// closed, when the last clone is dropped.
#[derive(Clone)]
struct Connector {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    operation: String,
    body: Vec<u8>,
    reply: oneshot::Sender<Answer>,
}

/// HTTP status and JSON body.
type Answer = (u16, String);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let operation = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = operation
            .strip_prefix(TARGET_PREFIX)
            .unwrap_or(operation)
            .to_owned();
        let body = request.body().bytes().unwrap_or_default().to_vec();
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(Job {
            operation,
            body,
            reply,
        });
        HttpConnectorFuture::new(async move {
            let stopped = || ConnectorError::other("the embedded engine has stopped".into(), None);
            sent.map_err(|_| stopped())?;
            let (status, body) = answer.await.map_err(|_| stopped())?;
            let status =
                StatusCode::try_from(status).map_err(|e| ConnectorError::other(e.into(), None))?;
            Ok(HttpResponse::new(status, SdkBody::from(body)))
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector(embedded)")
    }
}

fn serve(db: &Database, inbox: &mpsc::Receiver<Job>) {
    while let Ok(first) = inbox.recv() {
        let mut bytes = first.body.len();
        let mut jobs = vec![first];
        while jobs.len() < GROUP_JOBS && bytes < GROUP_BYTES {
            let Ok(job) = inbox.try_recv() else { break };
            bytes += job.body.len();
            jobs.push(job);
        }
        let mut puts = Vec::new();
        for job in jobs {
            if job.operation == "PutItem" {
                puts.push(job);
            } else {
                put_group(db, std::mem::take(&mut puts));
                answer(db, job);
            }
        }
        put_group(db, puts);
    }
}

/// Commits `jobs` together. Whatever keeps them from it, a failed condition
/// for example, is answered for each of those concerned alone.
fn put_group(db: &Database, jobs: Vec<Job>) {
    let (mut group, alone): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .map(|job| (groupable(&job.body), job))
        .partition(|(put, _)| put.is_some());
    let mut alone: Vec<Job> = alone.into_iter().map(|(_, job)| job).collect();
    while group.len() > 1 {
        let transact_items = group.iter().map(|(put, _)| TransactWriteItem {
            put: put.clone(),
            ..Default::default()
        });
        let request = TransactWriteItemsRequest {
            transact_items: transact_items.collect(),
            ..Default::default()
        };
        let reasons = match db.transact_write_items(request) {
            Ok(_) => {
                for (_, job) in group.drain(..) {
                    let _ = job.reply.send((200, "{}".into()));
                }
                break;
            }
            Err(DynoxideError::TransactionCanceledException(_, reasons)) => reasons,
            Err(_) => Vec::new(),
        };
        let mut reasons = reasons.into_iter();
        let before = group.len();
        let (able, unable) = group
            .into_iter()
            .partition(|_| reasons.next().is_some_and(|reason| reason.code == "None"));
        group = able;
        alone.extend(unable.into_iter().map(|(_, job): (_, Job)| job));
        if group.len() == before {
            break;
        }
    }
    for job in group.into_iter().map(|(_, job)| job).chain(alone) {
        answer(db, job);
    }
}

/// The put as part of a transaction, if nothing is to be returned with it.
fn groupable(body: &[u8]) -> Option<TransactPut> {
    let put: PutItemRequest = serde_json::from_slice(body).ok()?;
    let plain = put.return_values.is_none()
        && put.return_consumed_capacity.is_none()
        && put.return_item_collection_metrics.is_none()
        && put.expected.is_none();
    plain.then_some(TransactPut {
        table_name: put.table_name,
        item: put.item,
        condition_expression: put.condition_expression,
        expression_attribute_names: put.expression_attribute_names,
        expression_attribute_values: put.expression_attribute_values,
        return_values_on_condition_check_failure: None,
    })
}

/// Runs one request. A caller who has gone away gets no answer.
fn answer(db: &Database, job: Job) {
    let Job {
        operation,
        body,
        reply,
    } = job;
    let result = match operation.as_str() {
        "CreateTable" => run(&body, |request| db.create_table(request)),
        "DeleteItem" => run(&body, |request| db.delete_item(request)),
        "DeleteTable" => run(&body, |request| db.delete_table(request)),
        "DescribeTable" => run(&body, |request| db.describe_table(request)),
        "GetItem" => run(&body, |request| db.get_item(request)),
        "PutItem" => run(&body, |request| db.put_item(request)),
        "Query" => run(&body, |request| db.query(request)),
        "Scan" => run(&body, |request| db.scan(request)),
        "UpdateItem" => run(&body, |request| db.update_item(request)),
        "UpdateTable" => run(&body, |request| db.update_table(request)),
        _ => Err(DynoxideError::ValidationException(format!(
            "unknown operation {operation}"
        ))),
    };
    let _ = reply.send(match result {
        Ok(json) => (200, json),
        Err(error) => (error.status_code(), error.to_json()),
    });
}

fn run<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    operation: impl FnOnce(Q) -> dynoxide::Result<A>,
) -> dynoxide::Result<String> {
    let invalid = |e: serde_json::Error| DynoxideError::ValidationException(e.to_string());
    let request = serde_json::from_slice(body).map_err(invalid)?;
    serde_json::to_string(&operation(request)?).map_err(invalid)
}

/// Held while a file is made or opened, see [`create`].
static OPENING: Mutex<()> = Mutex::new(());

const TARGET_PREFIX: &str = "DynamoDB_20120810.";

/// The most puts in one commit: DynamoDB's limit for a transaction.
const GROUP_JOBS: usize = 100;
/// A group takes no more requests from here on. With the largest request, an
/// item of 400 KB in base64, it stays below the 4 MB of a transaction.
const GROUP_BYTES: usize = 2 << 20;
