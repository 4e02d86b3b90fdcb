//! The program as a service, with the test in systemd's place.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{PATIENCE, World};

/// Ends with the test, whatever becomes of it.
pub(crate) struct Service {
    child: Child,
    systemd: UnixDatagram,
    log: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Service {
    /// Starts it with `more` after the configuration's own lines, and waits until
    /// it listens.
    pub(crate) fn start(world: &World, more: &str, command: &mut Command) -> Self {
        let path = world.path("gateway.toml");
        fs::write(&path, configuration() + more).unwrap();
        let socket = world.path("notify");
        let systemd = UnixDatagram::bind(&socket).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = world.path("log");
        // a file: nobody reads along, and a pipe would fill up
        let child = command
            .env("NOTIFY_SOCKET", &socket)
            .arg("--config")
            .arg(&path)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut service = Self {
            child,
            systemd,
            log,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let ready = service.notified();
        assert!(ready.starts_with("READY=1\n"), "{ready}");
        let (_, address) = ready.trim_end().rsplit_once("listening on ").unwrap();
        service.address = address.parse().unwrap();
        service
    }

    /// What it says to systemd next.
    pub(crate) fn notified(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.systemd.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end. The log is in `stderr`.
    pub(crate) fn end(&mut self) -> Output {
        Output {
            status: self.child.wait().unwrap(),
            stdout: Vec::new(),
            stderr: fs::read(&self.log).unwrap(),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn gateway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zk-gateway"));
    command.env_clear();
    command
}

pub(crate) fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn configuration() -> String {
    "listen = \"127.0.0.1:0\"\n\
     store = \"file:readings.db\"\n\
     [tls]\n\
     certificate = \"gateway.crt.pem\"\n\
     key = \"gateway.key.pem\"\n\
     device-ca = \"device-ca.crt.pem\"\n"
        .to_owned()
}

/// A program of systemd's package, and what it said.
fn systemd(command: &mut Command) -> (bool, String) {
    match command.output() {
        Ok(output) => {
            let said = [&output.stdout[..], &output.stderr].concat();
            (output.status.success(), String::from_utf8(said).unwrap())
        }
        Err(error) => panic!(
            "{:?}: {error}; install it with: apt-get install systemd",
            command.get_program()
        ),
    }
}

#[test]
fn the_unit_is_hardened_and_right() {
    let beside = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let unit = beside("debian/zk-gateway.service");
    let (hardened, said) = systemd(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", "--threshold=25"])
            .arg(&unit),
    );
    assert!(hardened, "{said}");

    // with a program that is there
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("zk-gateway.service");
    let text = fs::read_to_string(&unit).unwrap();
    let runnable = text.replace("/usr/bin/zk-gateway", env!("CARGO_BIN_EXE_zk-gateway"));
    fs::write(&copy, runnable).unwrap();
    let (right, said) = systemd(Command::new("systemd-analyze").arg("verify").arg(&copy));
    assert!(right, "{said}");
    assert_eq!(said, "");

    let users = fs::read_to_string(beside("debian/zk-gateway.sysusers")).unwrap();
    assert!(users.starts_with("u zk-gateway "), "{users}");
    assert!(text.contains("\nUser=zk-gateway\nGroup=zk-gateway\n"));
}
