//! What it takes to look at a set-up in AWS, to make it and to take it away: calls,
//! and how long they take on a stand-in on this machine.
//!
//! `cargo xtask bench aws` builds the zip and installs MiniStack, which stands for
//! AWS, a new one in each round.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use zk_bench::{ROUNDS, Row};
use zk_hsm::{Hsm, create_soft_key};

/// What is done in a round, one after the other, and how it ends.
const RUNS: [(&str, &[&str], i32); 6] = [
    (
        "plan of an empty account",
        &["plan", "--device", "pi-01", "--csr", "csr.pem"],
        3,
    ),
    (
        "apply to an empty account",
        &["apply", "--yes", "--device", "pi-01", "--csr", "csr.pem"],
        0,
    ),
    ("plan where nothing is to do", &["plan"], 0),
    ("apply where nothing is to do", &["apply"], 0),
    ("check", &["check"], 0),
    (
        "destroy, with data and keys",
        &["destroy", "--with-data", "--with-keys", "--yes"],
        0,
    ),
];

fn main() {
    let mut taken = [(); RUNS.len()].map(|()| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        let account = MiniStack::start();
        let dir = tempfile::tempdir().unwrap();
        let key = create_soft_key(dir.path().join("key")).unwrap();
        let hsm = Hsm::open(&key, zk_hsm::Options::default()).unwrap();
        fs::write(dir.path().join("csr.pem"), hsm.csr("pi-01").unwrap()).unwrap();
        for ((what, arguments, code), (calls, seconds)) in RUNS.iter().zip(&mut taken) {
            let said = account.run(dir.path(), arguments);
            assert_eq!(said.0, Some(*code), "{what}: {}", said.1);
            let figure = |name: &str| said.1[name].as_f64().expect(what);
            calls.push(figure("calls"));
            seconds.push(figure("seconds"));
        }
    }
    for ((what, _, _), (calls, seconds)) in RUNS.iter().zip(&taken) {
        for (unit, rounds) in [("calls", calls), ("s", seconds)] {
            Row::alone(&format!("aws: {what}"), unit, None, rounds)
                .print()
                .unwrap();
        }
    }
}

struct MiniStack {
    process: Child,
    at: SocketAddr,
    // where it runs
    _dir: TempDir,
}

impl MiniStack {
    fn start() -> Self {
        let free = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [at, other] = free.map(|free| free.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new("ministack")
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", at.port().to_string())
            .env("IOT_MTLS_PORT", other.port().to_string())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this bench needs MiniStack: cargo xtask bench aws");
        let mut this = Self {
            process,
            at,
            _dir: dir,
        };
        let started = Instant::now();
        while TcpStream::connect(at).is_err() {
            let ended = this.process.try_wait().unwrap();
            let is_late = started.elapsed() > Duration::from_secs(120);
            assert!(ended.is_none() && !is_late, "MiniStack does not start");
            thread::sleep(Duration::from_millis(50));
        }
        this
    }

    /// zk-setup in this directory: how it ends, and what it says.
    fn run(&self, dir: &Path, arguments: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zk-setup"));
        command.env_clear().arg("--json").args(arguments);
        if arguments[0] != "destroy" {
            let zip = std::env::var_os("ZK_BENCH_LAMBDA_ZIP");
            let zip = zip.expect("ZK_BENCH_LAMBDA_ZIP is not set; run: cargo xtask bench aws");
            command.arg("--lambda-zip").arg(zip);
        }
        let output = command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.at))
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "eu-central-1")
            .env("ZK_SETUP_PASSPHRASE", "for a bench only")
            .env("ZK_OWNER_PASSPHRASE", "for a bench only")
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = serde_json::from_slice(&output.stdout);
        let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into());
        (output.status.code(), said)
    }
}

impl Drop for MiniStack {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
