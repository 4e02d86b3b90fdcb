//! DynamoDB inside the process: the SDK's requests go to an engine on a SQLite
//! file, over no socket.
//!
//! One thread owns the engine. Writes that wait for it at the same time are
//! committed together, so that they share one sync of the disk; each still gets
//! the answer that it would get alone.
//!
//! Whoever writes to a file holds a lock on the file beside it that ends in
//! `-lock`, with SQLite's own locks inside of it. So writers of several processes
//! queue up instead of trying again and again. And none of them commits while
//! another one copies the log back into the database: SQLite before 3.51.3 can
//! lose commits then (<https://sqlite.org/wal.html#walresetbug>). Readers take no
//! part in either.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::actions::transact_write_items::{
    TransactPut, TransactUpdate, TransactWriteItem, TransactWriteItemsRequest,
};
use dynoxide::actions::update_item::UpdateItemRequest;
use dynoxide::{AttributeValue, Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use crate::StoreError;

/// Opens the engine on the file `path`, which must exist. The other end of what
/// comes with it is dropped once the file is closed again.
pub(crate) async fn open(
    path: &Path,
) -> Result<(SharedHttpClient, watch::Receiver<()>), StoreError> {
    let (connector, closed) = start(path).await?;
    let connector = SharedHttpConnector::new(connector);
    Ok((http_client_fn(move |_, _| connector.clone()), closed))
}

async fn start(path: &Path) -> Result<(Connector, watch::Receiver<()>), StoreError> {
    let path = std::path::absolute(path).map_err(|source| StoreError::file(path, source))?;
    let (jobs, mut inbox) = mpsc::channel(WAITING);
    let (opened, is_open) = oneshot::channel();
    let (open, closed) = watch::channel(());
    std::thread::Builder::new()
        .name("zk-store".into())
        .spawn({
            let path = path.clone();
            move || {
                match Engine::open(&path) {
                    Ok(engine) => {
                        // If nobody waits any more, the inbox is closed as well.
                        let _ = opened.send(Ok(()));
                        serve(engine, &path, &mut inbox);
                    }
                    Err(error) => drop(opened.send(Err(error))),
                }
                drop(open);
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
    Ok((Connector { jobs }, closed))
}

/// Serves until the inbox is closed. What panics is not answered for, and the
/// engine is opened anew: what it had not committed is gone with the old one.
fn serve(engine: Engine, path: &Path, inbox: &mut mpsc::Receiver<Job>) {
    let mut engine = Some(engine);
    while let Some(first) = inbox.blocking_recv() {
        // One attempt for each request that comes: its sender gets an error.
        let open = match engine.take() {
            Some(open) => open,
            None => match Engine::open(path) {
                Ok(open) => open,
                Err(error) => {
                    tracing::error!("the embedded engine cannot be opened again: {error}");
                    continue;
                }
            },
        };
        match catch_unwind(AssertUnwindSafe(|| open.serve(first, inbox))) {
            Ok(()) => engine = Some(open),
            Err(_) => {
                tracing::error!(
                    path = %path.display(),
                    "the embedded engine panicked, and is opened anew: this is a defect, please report it"
                );
                open.close();
            }
        }
    }
    if let Some(open) = engine {
        open.close();
    }
}

/// Makes the file `path` and the directories above it, as far as they are
/// missing: for the owner alone, and durable before it returns.
pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::file(path, source);
    let path = std::path::absolute(path).map_err(fail)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let missing: Vec<_> = parent.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(fail)?;
    for made in missing {
        sync_entry(made).map_err(fail)?;
    }
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
    sync_entry(&path).map_err(fail)
}

/// Makes a new directory entry durable.
fn sync_entry(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
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
        let jobs = self.jobs.clone();
        HttpConnectorFuture::new(async move {
            let stopped = || ConnectorError::other("the embedded engine has stopped".into(), None);
            let (reply, answer) = oneshot::channel();
            let job = Job {
                operation,
                body,
                reply,
            };
            jobs.send(job).await.map_err(|_| stopped())?;
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

/// The engine, on its thread.
struct Engine {
    db: Database,
    /// The file that ends in `-lock`.
    writing: File,
}

impl Engine {
    fn open(path: &Path) -> Result<Self, StoreError> {
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
        // Neither by writing to it nor by putting another one in its place, which
        // in a directory with the sticky bit is for the owner alone.
        let directory = path.parent().unwrap_or(path);
        let around = std::fs::metadata(directory).map_err(fail)?.mode();
        let writable = match (found.mode() & 0o002, around & 0o1002) {
            (0o002, _) => Some(path),
            (_, 0o002) => Some(directory),
            _ => None,
        };
        if let Some(path) = writable {
            return Err(StoreError::Writable {
                path: path.to_owned(),
            });
        }
        let name = path
            .to_str()
            .ok_or_else(|| fail(io::Error::other("the path is not UTF-8")))?;

        let beside = PathBuf::from(format!("{name}-lock"));
        let mode = found.mode() & 0o666;
        let writing = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .open(&beside);
        let writing = writing.map_err(|source| StoreError::file(&beside, source))?;
        // As with SQLite's own files: who may write the one may write the other.
        if writing
            .metadata()
            .is_ok_and(|found| found.mode() & 0o777 != mode)
        {
            let _ = writing.set_permissions(Permissions::from_mode(mode));
        }
        let held = Held::lock_soon(&writing, &beside)?;
        let opened = Database::new(name);
        drop(held);
        let source = match opened {
            Ok(db) => return Ok(Self { db, writing }),
            Err(error) => Box::new(error),
        };
        Err(StoreError::Engine {
            path: path.to_owned(),
            source,
        })
    }

    fn close(self) {
        // Whoever closes the file last copies the log back.
        let _writing = Held::lock(&self.writing);
        drop(self.db);
    }

    /// Does `first` and what waits with it.
    fn serve(&self, first: Job, inbox: &mut mpsc::Receiver<Job>) {
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(job) = next {
            // Whoever has given up asks again: to do it now, after the disk
            // was slow, would only make the others wait who still do.
            if !job.reply.is_closed() {
                bytes += job.body.len();
                jobs.push(job);
            }
            let more = jobs.len() < GROUP_JOBS && bytes < GROUP_BYTES;
            next = if more { inbox.try_recv().ok() } else { None };
        }
        // Those who wait at the same time have no order among them.
        let mut writes = Vec::new();
        for job in jobs {
            match Write::of(job) {
                Ok(write) => writes.push(write),
                Err(job) => self.answer(job),
            }
        }
        while !writes.is_empty() {
            let mut items = HashSet::new();
            let (group, rest) = writes
                .into_iter()
                .partition(|write| items.insert(write.item.clone()));
            self.commit(group);
            writes = rest;
        }
    }

    /// Commits `group` together. Whatever keeps one from it, a failed condition
    /// for example, is answered for that one alone.
    fn commit(&self, mut group: Vec<Write>) {
        let mut alone = Vec::new();
        while group.len() > 1 {
            let request = TransactWriteItemsRequest {
                transact_items: group.iter().map(|write| write.action.clone()).collect(),
                ..Default::default()
            };
            let committed = match Held::lock(&self.writing) {
                Ok(_writing) => self.db.transact_write_items(request),
                Err(_) => break,
            };
            let reasons = match committed {
                Ok(_) => {
                    for write in group {
                        let _ = write.job.reply.send((200, "{}".into()));
                    }
                    group = Vec::new();
                    break;
                }
                Err(DynoxideError::TransactionCanceledException(_, reasons)) => reasons,
                Err(_) => Vec::new(),
            };
            let mut reasons = reasons.into_iter();
            let before = group.len();
            let able = |_: &Write| reasons.next().is_some_and(|reason| reason.code == "None");
            let (able, unable): (Vec<_>, Vec<_>) = group.into_iter().partition(able);
            group = able;
            alone.extend(unable);
            if group.len() == before {
                break;
            }
        }
        for write in group.into_iter().chain(alone) {
            self.answer(write.job);
        }
    }

    /// Runs one request. A caller who has gone away gets no answer.
    fn answer(&self, job: Job) {
        let Job {
            operation,
            body,
            reply,
        } = job;
        let result = self.run(&operation, &body);
        let _ = reply.send(match result {
            Ok(json) => (200, json),
            Err(error) => (error.status_code(), error.to_json()),
        });
    }

    fn run(&self, operation: &str, body: &[u8]) -> dynoxide::Result<String> {
        let db = &self.db;
        match operation {
            "DescribeTable" => return call(body, |request| db.describe_table(request)),
            "GetItem" => return call(body, |request| db.get_item(request)),
            "Query" => return call(body, |request| db.query(request)),
            "Scan" => return call(body, |request| db.scan(request)),
            #[cfg(test)]
            tests::PANIC => tests::panic(),
            _ => {}
        }
        let _writing = Held::lock(&self.writing)
            .map_err(|e| DynoxideError::InternalServerError(format!("no lock to write: {e}")))?;
        match operation {
            "CreateTable" => call(body, |request| db.create_table(request)),
            "DeleteItem" => call(body, |request| db.delete_item(request)),
            "DeleteTable" => call(body, |request| db.delete_table(request)),
            "PutItem" => call(body, |request| db.put_item(request)),
            "UpdateItem" => call(body, |request| db.update_item(request)),
            "UpdateTable" => call(body, |request| db.update_table(request)),
            _ => Err(DynoxideError::ValidationException(format!(
                "unknown operation {operation}"
            ))),
        }
    }
}

fn call<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    operation: impl FnOnce(Q) -> dynoxide::Result<A>,
) -> dynoxide::Result<String> {
    let invalid = |e: serde_json::Error| DynoxideError::ValidationException(e.to_string());
    let request = serde_json::from_slice(body).map_err(invalid)?;
    serde_json::to_string(&operation(request)?).map_err(invalid)
}

/// The lock of those who write, until it is dropped.
struct Held<'a>(&'a File);

impl<'a> Held<'a> {
    /// Waits for it.
    fn lock(file: &'a File) -> io::Result<Self> {
        file.lock()?;
        Ok(Self(file))
    }

    /// Waits for it as long as anybody may need it, and says who has it then.
    fn lock_soon(file: &'a File, path: &Path) -> Result<Self, StoreError> {
        let asked = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if asked.elapsed() > PATIENCE => {
                    return Err(StoreError::Locked {
                        path: path.to_owned(),
                        holder: holder(file).unwrap_or_else(|| "another process".into()),
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN),
                Err(TryLockError::Error(error)) => return Err(StoreError::file(path, error)),
            }
        }
    }
}

/// Who holds the lock on a file, as far as Linux tells.
fn holder(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino();
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let process = locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, process) = (words.next()?, words.nth(2)?);
        let locked = words.next()?.rsplit(':').next()?;
        (kind == "FLOCK" && locked.parse() == Ok(inode)).then_some(process)
    })?;
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} ({})", name.trim_end()))
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It cannot fail for a lock that is held.
        let _ = self.0.unlock();
    }
}

/// A request that changes one item and answers nothing but that it did.
struct Write {
    action: TransactWriteItem,
    /// Which item.
    item: String,
    job: Job,
}

impl Write {
    fn of(job: Job) -> Result<Self, Job> {
        let action = match job.operation.as_str() {
            "PutItem" => put(&job.body),
            "UpdateItem" => update(&job.body),
            _ => None,
        };
        match action {
            Some((action, item)) => Ok(Self { action, item, job }),
            None => Err(job),
        }
    }
}

fn put(body: &[u8]) -> Option<(TransactWriteItem, String)> {
    let put: PutItemRequest = serde_json::from_slice(body).ok()?;
    if put.return_values.is_some() || put.return_consumed_capacity.is_some() {
        return None;
    }
    let name = item_name(&put.table_name, &put.item);
    let put = TransactPut {
        table_name: put.table_name,
        item: put.item,
        condition_expression: put.condition_expression,
        expression_attribute_names: put.expression_attribute_names,
        expression_attribute_values: put.expression_attribute_values,
        return_values_on_condition_check_failure: None,
    };
    Some((
        TransactWriteItem {
            put: Some(put),
            ..Default::default()
        },
        name,
    ))
}

fn update(body: &[u8]) -> Option<(TransactWriteItem, String)> {
    let update: UpdateItemRequest = serde_json::from_slice(body).ok()?;
    if update.return_values.is_some() || update.return_consumed_capacity.is_some() {
        return None;
    }
    let name = item_name(&update.table_name, &update.key);
    let update = TransactUpdate {
        table_name: update.table_name,
        key: update.key,
        update_expression: update.update_expression?,
        condition_expression: update.condition_expression,
        expression_attribute_names: update.expression_attribute_names,
        expression_attribute_values: update.expression_attribute_values,
        return_values_on_condition_check_failure: None,
    };
    Some((
        TransactWriteItem {
            update: Some(update),
            ..Default::default()
        },
        name,
    ))
}

/// Tells the items of our tables apart. (A transaction that named one twice
/// would be refused, and its writes done one by one.)
fn item_name(table: &str, attributes: &HashMap<String, AttributeValue>) -> String {
    let part = |name| match attributes.get(name) {
        Some(AttributeValue::S(text)) => text.as_str(),
        _ => "",
    };
    let key = match table.rsplit('-').next() {
        Some("readings") => [part("deviceId"), part("timestamp")],
        Some("quarantine") => [part("id"), ""],
        _ => [part("principal"), ""],
    };
    format!("{table}\n{}\n{}", key[0], key[1])
}

/// Held while a file is made or opened, see [`create`].
static OPENING: Mutex<()> = Mutex::new(());

const TARGET_PREFIX: &str = "DynamoDB_20120810.";

/// How long opening waits for others who write: longer than any disk should take
/// for a commit, or for the log to be copied back.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_millis(10);

/// So many requests wait in memory for the engine's thread, and the senders of
/// more with theirs.
const WAITING: usize = 1024;

/// The most writes in one commit: DynamoDB's limit for a transaction.
const GROUP_JOBS: usize = 100;
/// A group takes no more requests from here on. With the largest request, an
/// item of 400 KB in base64, it stays below the 4 MB of a transaction.
const GROUP_BYTES: usize = 2 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Stands for a defect in the engine: one that is known would be mended.
    pub(super) const PANIC: &str = "Panic";

    pub(super) fn panic() -> ! {
        panic!("as the test asked")
    }

    #[tokio::test]
    async fn an_engine_that_panicked_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zk.db");
        create(&path).unwrap();
        let (connector, _closed) = start(&path).await.unwrap();
        let ask = async |operation: &str, body: &'static str| {
            let mut request = HttpRequest::new(SdkBody::from(body));
            let target = format!("{TARGET_PREFIX}{operation}");
            request.headers_mut().insert("x-amz-target", target);
            let answer = connector.call(request).await;
            answer.map(|answer| answer.status().as_u16())
        };
        let table = r#"{"TableName":"test","BillingMode":"PAY_PER_REQUEST",
            "KeySchema":[{"AttributeName":"k","KeyType":"HASH"}],
            "AttributeDefinitions":[{"AttributeName":"k","AttributeType":"S"}]}"#;
        assert_eq!(ask("CreateTable", table).await.unwrap(), 200);
        let name = r#"{"TableName":"test"}"#;
        for _ in 0..3 {
            ask(PANIC, "").await.unwrap_err();
            assert_eq!(ask("DescribeTable", name).await.unwrap(), 200);
        }

        // and when it cannot be opened, it is tried again
        ask(PANIC, "").await.unwrap_err();
        let allow = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        allow(0o666);
        ask("DescribeTable", name).await.unwrap_err();
        allow(0o600);
        assert_eq!(ask("DescribeTable", name).await.unwrap(), 200);
    }
}
