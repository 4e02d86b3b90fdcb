//! Foreign servers as children of a test.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use tempfile::TempDir;

/// A version of TLS, and how a session of it can be resumed: [`TICKETS`],
/// [`CACHE`] or [`NEITHER`].
pub type Way = (&'static str, &'static str);

/// The versions that it speaks, as it names them.
pub const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

/// The client keeps the session.
pub const TICKETS: &str = "ssl_session_cache none; ssl_session_tickets on;";
/// The server keeps the session.
pub const CACHE: &str = "ssl_session_cache shared:sessions:1m; ssl_session_tickets off;";
/// Nobody does.
pub const NEITHER: &str = "ssl_session_cache off; ssl_session_tickets off;";

/// nginx that insists on client certificates, with a port for each [`Way`]
/// and files of its own; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    /// Kept so that it can write.
    _errors: BufReader<ChildStderr>,
    ports: Vec<(Way, u16)>,
    _dir: TempDir,
}

impl Nginx {
    /// With the server's certificate and key, the authority of the clients, and
    /// the body of each answer, in which nginx replaces its variables.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(certificate: &Path, key: &Path, clients: &Path, answer: &str) -> Self {
        let answer = format!("return 200 '{answer}';");
        Self::start_with(certificate, key, clients, &answer)
    }

    /// The same, but what comes from a client with a certificate is passed on as
    /// nginx's directives `pass` say.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn in_front(certificate: &Path, key: &Path, clients: &Path, pass: &str) -> Self {
        let location = format!("location / {{ {pass} }}");
        Self::start_with(certificate, key, clients, &location)
    }

    fn start_with(certificate: &Path, key: &Path, clients: &Path, server: &str) -> Self {
        let mut tries = (0..10).filter_map(|_| Self::try_start(certificate, key, clients, server));
        tries.next().expect("free ports")
    }

    /// Where it listens for connections of this kind, on 127.0.0.1.
    pub fn port(&self, way: Way) -> u16 {
        let (_, port) = self.ports.iter().find(|(has, _)| *has == way).unwrap();
        *port
    }

    /// `None` if a port that was free has been taken meanwhile.
    fn try_start(certificate: &Path, key: &Path, clients: &Path, server: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mut servers = String::new();
        let mut ports = Vec::new();
        let mut free = Vec::new();
        for version in VERSIONS {
            for how in [TICKETS, CACHE, NEITHER] {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let port = listener.local_addr().unwrap().port();
                // held until all are found, so that each is another one
                free.push(listener);
                ports.push(((version, how), port));
                let listen = format!("listen 127.0.0.1:{port} ssl; ssl_protocols {version};");
                writeln!(servers, "server {{ {listen} {how} {server} }}").unwrap();
            }
        }
        drop(free);
        let mut temporary = String::new();
        for module in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(temporary, "{module}_temp_path {module};").unwrap();
        }
        let config = format!(
            r#"
            daemon off;
            master_process off;
            pid nginx.pid;
            error_log stderr notice;
            events {{}}
            http {{
                access_log off;
                {temporary}
                ssl_certificate {certificate:?};
                ssl_certificate_key {key:?};
                ssl_client_certificate {clients:?};
                ssl_verify_client on;
                default_type application/json;
                {servers}
            }}
            "#,
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        // it may be where only root's PATH leads
        let path = std::env::var("PATH").unwrap() + ":/usr/sbin";
        let mut child = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(dir.path())
            .env("PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs the nginx program: apt-get install nginx");
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        // it says so once it listens
        let mut said = String::new();
        while !said.contains("event method") {
            if errors.read_line(&mut said).unwrap() == 0 {
                child.wait().unwrap();
                assert!(said.contains("already in use"), "nginx fails: {said}");
                return None;
            }
        }
        Some(Self {
            child,
            _errors: errors,
            ports,
            _dir: dir,
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
