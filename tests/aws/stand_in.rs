//! MiniStack and moto, which play AWS on this machine, and the way to them, on
//! which requests are counted and go astray.
// each test needs a part of it
#![allow(dead_code)]

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_iam::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use tempfile::TempDir;

/// Where everything is.
pub(crate) const REGION: &str = "eu-central-1";

/// A server that plays AWS; ended when dropped.
pub(crate) struct StandIn {
    process: Child,
    at: SocketAddr,
    mqtt: u16,
    dir: TempDir,
    python: Mutex<Option<Python>>,
}

/// Python that takes code, a line of JSON each, and answers what it printed, or
/// how it failed.
struct Python {
    process: Child,
    code: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl StandIn {
    /// MiniStack, which holds callers to their policies.
    pub(crate) fn ministack() -> Self {
        Self::start("ministack", |command, port, other| {
            command
                .env("AUTH", "true")
                .env("BIND_HOST", "127.0.0.1")
                .env("GATEWAY_PORT", port.to_string())
                // for the functions that it runs
                .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
                .env("IOT_MTLS_PORT", other.to_string());
        })
    }

    /// moto, which believes everybody.
    pub(crate) fn moto() -> Self {
        Self::start("moto_server", |command, port, _| {
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        })
    }

    fn start(program: &str, how: impl Fn(&mut Command, u16, u16)) -> Self {
        let path = environment().join("bin").join(program);
        assert!(
            path.exists(),
            "{} is missing: `cargo xtask test aws` installs it",
            path.display()
        );
        let dir = tempfile::tempdir().expect("a directory");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let started = Instant::now();
        'again: loop {
            let (one, other) = (port(), port());
            // by Python's name, as it has that of the place where it was installed
            let mut command = Command::new(environment().join("bin/python"));
            command.arg(&path);
            how(&mut command, one, other);
            let mut process = command
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a log"))
                .stderr(log.try_clone().expect("a log"))
                .spawn()
                .expect("a process");
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, one));
            while TcpStream::connect(at).is_err() {
                let ended = process.try_wait().expect("its state");
                assert!(
                    started.elapsed() < Duration::from_secs(120),
                    "{program} does not start: {}",
                    fs::read_to_string(dir.path().join("log")).unwrap_or_default()
                );
                if ended.is_some() {
                    // somebody else has taken a port meanwhile
                    continue 'again;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            return Self {
                process,
                at,
                mqtt: other,
                dir,
                python: Mutex::new(None),
            };
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Where MiniStack takes MQTT over TLS, on 127.0.0.1.
    pub(crate) fn mqtt(&self) -> u16 {
        self.mqtt
    }

    /// A configuration for it with these credentials, over that way.
    pub(crate) fn config(&self, credentials: &Credentials, way: &Way, retries: bool) -> SdkConfig {
        let retry = if retries {
            RetryConfig::standard().with_initial_backoff(Duration::from_millis(1))
        } else {
            RetryConfig::disabled()
        };
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.url())
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .retry_config(retry)
            .http_client(way.clone())
            .build()
    }

    /// Runs Python with boto3 as the account's root; `client(service)` is one.
    /// Answers what it printed.
    pub(crate) fn boto3(&self, code: &str) -> String {
        let mut python = self.python.lock().expect("no panic");
        let python = python.get_or_insert_with(|| Python::start(&self.url()));
        let line = serde_json::to_string(code).expect("JSON");
        writeln!(python.code, "{line}").expect("it listens");
        let mut answer = String::new();
        python.answers.read_line(&mut answer).expect("its output");
        let (good, said): (bool, String) = serde_json::from_str(&answer).expect("JSON");
        assert!(good, "{code}: {said}");
        said
    }

    /// A user of that name with this policy alone, as far as MiniStack can tell: of
    /// some actions it doesn't see what they are to be done to, and permits them on
    /// everything or not at all. Those it gets on everything, if the policy has
    /// them.
    pub(crate) fn operator(&self, name: &str, policy: &str) -> Credentials {
        let mut blind: Vec<_> = BLIND.to_vec();
        blind.retain(|action| policy.contains(&format!("\"{action}\"")));
        for (action, taken_for) in MISTAKEN {
            if policy.contains(&format!("\"{action}\"")) {
                blind.push(taken_for);
            }
        }
        let credentials = self.user(name, policy);
        self.boto3(&format!(
            "client('iam').put_user_policy(UserName={name:?}, PolicyName='blind', \
             PolicyDocument=json.dumps({{'Version': '2012-10-17', 'Statement': [{{'Effect': \
             'Allow', 'Action': {blind:?}, 'Resource': '*'}}]}}))"
        ));
        credentials
    }

    /// A user of that name with this policy alone.
    pub(crate) fn user(&self, name: &str, policy: &str) -> Credentials {
        let printed = self.boto3(&format!(
            "iam = client('iam')\n\
             iam.create_user(UserName={name:?})\n\
             arn = iam.create_policy(PolicyName={name:?}, PolicyDocument={policy:?})['Policy']['Arn']\n\
             iam.attach_user_policy(UserName={name:?}, PolicyArn=arn)\n\
             key = iam.create_access_key(UserName={name:?})['AccessKey']\n\
             print(key['AccessKeyId'], key['SecretAccessKey'])"
        ));
        let (id, secret) = printed.trim().split_once(' ').expect("a key");
        Credentials::new(id, secret, None, None, "test")
    }

    /// The account's number.
    pub(crate) fn account(&self) -> String {
        let printed = self.boto3("print(client('sts').get_caller_identity()['Account'])");
        printed.trim().to_owned()
    }
}

/// A port that is free, and that nobody gets who lets the system choose: it gives
/// away those from 32768 on, also to each connection that is made meanwhile.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 64 * (std::process::id() % 250) as u16;
    loop {
        let port = 16384 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 16000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

impl Python {
    fn start(url: &str) -> Self {
        let mut process = Command::new(environment().join("bin/python"))
            .args(["-c", PYTHON, url, REGION])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python");
        let code = process.stdin.take().expect("its input");
        let answers = BufReader::new(process.stdout.take().expect("its output"));
        Self {
            process,
            code,
            answers,
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const PYTHON: &str = "
import boto3, contextlib, io, json, sys, traceback
def client(service):
    return boto3.client(service, endpoint_url=sys.argv[1], region_name=sys.argv[2],
        aws_access_key_id='test', aws_secret_access_key='test')
for line in sys.stdin:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(json.loads(line), {'client': client, 'json': json})
        answer = True, said.getvalue()
    except Exception:
        answer = False, traceback.format_exc()
    print(json.dumps(answer), flush=True)
";

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of these, MiniStack doesn't see what they are to be done to.
const BLIND: [&str; 9] = [
    "dynamodb:ListTagsOfResource",
    "dynamodb:TagResource",
    "iot:AttachPolicy",
    "iot:DeleteCACertificate",
    "iot:DescribeCACertificate",
    "iot:DetachPolicy",
    "iot:ListPrincipalThings",
    "iot:UpdateCACertificate",
    "lambda:CreateFunction",
];

/// These it takes for others.
const MISTAKEN: [(&str, &str); 2] = [
    ("lambda:GetFunctionEventInvokeConfig", "lambda:GetFunction"),
    (
        "lambda:GetFunctionConcurrency",
        "lambda:PutFunctionConcurrency",
    ),
];

/// The credentials of the account's root.
pub(crate) fn root() -> Credentials {
    Credentials::new("test", "test", None, None, "test")
}

/// Where `cargo xtask test aws` installs it all.
pub(crate) fn environment() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("target/venv-aws")
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is lost, and nothing came of it.
    Lost,
    /// It is carried out, and its answer is lost.
    Unanswered,
    /// AWS answers so instead: status, code and message.
    Refused(u16, &'static str, &'static str),
    /// The same where it agrees: this JSON.
    Answered(&'static str),
}

type Choose = dyn FnMut(usize, &str) -> Option<Fault> + Send;

/// The way to a stand-in. Clones are the same way.
#[derive(Clone)]
pub(crate) struct Way {
    inner: SharedHttpClient,
    state: Arc<Mutex<State>>,
}

struct State {
    /// What was asked.
    calls: Vec<String>,
    choose: Box<Choose>,
}

impl Way {
    /// One on which nothing goes wrong.
    pub(crate) fn new() -> Self {
        Self {
            inner: aws_smithy_http_client::Builder::new().build_http(),
            state: Arc::new(Mutex::new(State {
                calls: Vec::new(),
                choose: Box::new(|_, _| None),
            })),
        }
    }

    /// From now on, `choose` says of each request what happens to it: of its
    /// number, from 0, and what it asks.
    pub(crate) fn fault(&self, choose: impl FnMut(usize, &str) -> Option<Fault> + Send + 'static) {
        let mut state = self.state.lock().expect("no panic");
        state.calls.clear();
        state.choose = Box::new(choose);
    }

    /// From now on all is well. Answers what was asked since the last time.
    pub(crate) fn clear(&self) -> Vec<String> {
        let mut state = self.state.lock().expect("no panic");
        state.choose = Box::new(|_, _| None);
        std::mem::take(&mut state.calls)
    }

    /// What was asked since then and changes something.
    pub(crate) fn changes(&self) -> Vec<String> {
        let calls = self.clear();
        calls.into_iter().filter(|call| changes(call)).collect()
    }
}

/// Whether a call changes something.
pub(crate) fn changes(call: &str) -> bool {
    let reads = ["Describe", "Get", "List", "Scan", "Query", "GET"];
    !reads.iter().any(|verb| call.starts_with(verb))
}

/// What a request asks: the operation, or method and path.
fn name_of(request: &HttpRequest) -> String {
    if let Some(target) = request.headers().get("x-amz-target") {
        let name = target.rsplit_once('.').map_or(target, |(_, name)| name);
        return name.to_owned();
    }
    let body = request.body().bytes().unwrap_or_default();
    let form = std::str::from_utf8(body).unwrap_or_default();
    if let Some(rest) = form.strip_prefix("Action=") {
        return rest.split('&').next().unwrap_or_default().to_owned();
    }
    let path = request.uri().split("://").last().unwrap_or_default();
    let path = path.split_once('/').map_or("", |(_, path)| path);
    format!("{} /{path}", request.method())
}

impl HttpClient for Way {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            inner: self.inner.http_connector(settings, components),
            state: Arc::clone(&self.state),
        })
    }
}

#[derive(Debug)]
struct Connector {
    inner: SharedHttpConnector,
    state: Arc<Mutex<State>>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let name = name_of(&request);
        let fault = {
            let mut state = self.state.lock().expect("no panic");
            let number = state.calls.len();
            state.calls.push(name.clone());
            (state.choose)(number, &name)
        };
        let lost = || ConnectorError::io(std::io::Error::other("lost on the way").into());
        let is_json = request
            .headers()
            .get("content-type")
            .is_none_or(|kind| !kind.contains("urlencoded"));
        match fault {
            None => self.inner.call(request),
            Some(Fault::Lost) => HttpConnectorFuture::ready(Err(lost())),
            Some(Fault::Unanswered) => {
                let answer = self.inner.call(request);
                HttpConnectorFuture::new(async move {
                    answer.await?;
                    Err(lost())
                })
            }
            Some(Fault::Answered(body)) => {
                let body = SdkBody::from(body);
                let status = 200.try_into().expect("a status");
                HttpConnectorFuture::ready(Ok(HttpResponse::new(status, body)))
            }
            Some(Fault::Refused(status, code, message)) => {
                let body = if is_json {
                    format!("{{\"__type\":\"{code}\",\"message\":\"{message}\"}}")
                } else {
                    format!(
                        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>\
                         <Message>{message}</Message></Error></ErrorResponse>"
                    )
                };
                let status = status.try_into().expect("a status");
                let mut response = HttpResponse::new(status, SdkBody::from(body));
                response.headers_mut().insert("x-amzn-errortype", code);
                HttpConnectorFuture::ready(Ok(response))
            }
        }
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").finish_non_exhaustive()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}
