//! The program as a service, with the test in systemd's place.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
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
