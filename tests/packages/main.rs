//! The Debian packages: installed in a clean Debian, used, upgraded and removed; and
//! those for arm64 used under an emulator of that machine.
//!
//! `cargo xtask test packages` makes the packages and that Debian.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod debs;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use debs::{BY_XTASK, HOST, PACKAGES, finish, newer, package, text};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zk_sensors::{SensorId, SimulatedBus};

#[test]
fn a_clean_debian_takes_them_and_lets_them_go() {
    let root = Root::clean();
    for name in PACKAGES {
        root.install(&package(name, HOST), &[]);
    }
    for user in ["zk-agent", "zk-gateway"] {
        let users = root.read("etc/passwd");
        assert!(users.contains(&format!("\n{user}:")), "{users}");
        let wants = format!("etc/systemd/system/multi-user.target.wants/{user}.service");
        assert!(root.path(&wants).is_symlink(), "{user} is not enabled");
        let unit = root.read(&format!("usr/lib/systemd/system/{user}.service"));
        assert!(unit.contains("\nConditionPathExists=/etc/"), "{unit}");
    }
    for (program, section) in PROGRAMS {
        let output = finish(root.command(program).arg("--version"));
        assert_eq!(text(&output.stdout).split(' ').next(), Some(program));
        let page = format!("usr/share/man/man{section}/{program}.{section}.gz");
        let page = Command::new("gzip")
            .args(["-cd"])
            .arg(root.path(&page))
            .output();
        let page = text(&page.unwrap().stdout);
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains("Examples"),
            "{program}"
        );
        let completions = format!("usr/share/bash-completion/completions/{program}");
        finish(Command::new("bash").arg("-n").arg(root.path(&completions)));
    }
    let mut unconfigured = root.command("zk-agent");
    let output = unconfigured.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    works(&root);

    // A newer package, in which what the administrator has changed is changed as well.
    for name in ["zk-agent", "zk-gateway"] {
        let settings = format!("etc/default/{name}");
        let mine = root.read(&settings) + "RUST_LOG=debug\n";
        fs::write(root.path(&settings), &mine).unwrap();
        let made = TempDir::new().unwrap();
        root.install(
            &newer(name, &settings, made.path()),
            &["--force-confdef", "--force-confold"],
        );
        assert_eq!(root.read(&settings), mine, "{name}: a change was lost");
        let version = root.dpkg(&["--status", name]);
        assert!(
            text(&version.stdout).contains("\nVersion: 99"),
            "{version:?}"
        );
    }

    let kept = "var/lib/zk-agent/spool";
    fs::create_dir_all(root.path(kept)).unwrap();
    for name in PACKAGES {
        root.dpkg(&["--remove", name]);
    }
    for (program, _) in PROGRAMS {
        assert!(
            !root.path(&format!("usr/bin/{program}")).exists(),
            "{program}"
        );
    }
    assert!(
        root.path("etc/default/zk-agent").exists(),
        "removed is not purged"
    );
    for name in ["zk-agent", "zk-gateway"] {
        root.dpkg(&["--purge", name]);
        assert!(!root.path(&format!("etc/default/{name}")).exists());
    }
    assert!(
        root.path(kept).exists(),
        "records that wait are nobody's to delete"
    );
    let left: Vec<_> = finish(
        Command::new("find")
            .arg(root.path(""))
            .args(["-name", "*zk*"]),
    )
    .stdout
    .lines()
    .map(|line| line.unwrap())
    .filter(|path| !path.contains("/srv/") && !path.contains("/var/lib/"))
    .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn those_for_arm64_run_on_such_a_machine() {
    let machine = Emulated::with(&PACKAGES.map(|name| package(name, "arm64")));
    for (program, _) in PROGRAMS {
        let path = machine.tree.path().join("usr/bin").join(program);
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o755
        );
    }
    works(&machine);
}

/// A gateway, a device with its sensors, and their owner, by what is installed.
fn works(machine: &dyn Machine) {
    let (inside, outside) = machine.directory();
    let at = |name: &str| format!("{inside}/{name}");
    fs::write(outside.join("passphrase"), "correct horse battery staple\n").unwrap();
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(outside.join("passphrase"), private).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = port.local_addr().unwrap().to_string();
    drop(port);

    let mut setup = machine.command("zk-setup");
    setup
        .args([
            "apply",
            "--target",
            "local",
            "--dir",
            &at("zk"),
            "--name",
            "localhost",
        ])
        .args([
            "--listen",
            &listen,
            "--endpoint",
            &listen.replace("127.0.0.1", "localhost"),
        ])
        .args([
            "--device",
            "pi-01",
            "--hsm",
            &format!("soft:{}", at("pi-01.key.pem")),
        ])
        .args(["--passphrase-file", &at("passphrase")])
        .args(["--owner-passphrase-file", &at("passphrase")]);
    let output = setup.output().unwrap();
    // 3: the gateway is not running yet
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");

    let config = at("zk/gateway/gateway.toml");
    let mut gateway = machine.command("zk-gateway");
    let mut gateway = Running::start(gateway.args(["--config", &config]));
    gateway.says("listening");

    let mut bus = SimulatedBus::create(
        outside.join("sys"),
        &["28-0000000a0001", "10-0000000a0002"].map(|id| id.parse::<SensorId>().unwrap()),
    )
    .unwrap();
    bus.set(
        "28-0000000a0001".parse().unwrap(),
        zk_sensors::MilliCelsius(21_437),
    )
    .unwrap();
    let mut agent = machine.command("zk-agent");
    agent
        .args(["--config", &at("zk/devices/pi-01/agent.toml")])
        // that of the file is this machine's own where programs are emulated
        .args(["--spool", &at("spool")])
        .args([
            "--sensors-root",
            &at("sys"),
            "--interval",
            "50ms",
            "--metrics",
            "127.0.0.1:0",
        ]);
    let mut agent = Running::start(&mut agent);
    agent.says("started");

    let reader = |command: &str| {
        let mut reader = machine.command("zk-reader");
        reader
            .args([
                "--config",
                &at("zk/reader.toml"),
                "--passphrase-file",
                &at("passphrase"),
            ])
            .arg(command);
        reader
    };
    let mut follow = reader("follow")
        .args(["--from", "1h", "--interval", "100ms", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let records = BufReader::new(follow.stdout.take().unwrap());
    let measured = records
        .lines()
        .map(|line| line.unwrap())
        .filter(|line| line.contains("21.437"))
        .take(3)
        .count();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(measured, 3);

    let doctor = finish(
        machine
            .command("zk-ctl")
            .args(["--config", &at("zk/devices/pi-01/agent.toml")])
            .args(["spool", "status", "--json", "--dir", &at("spool")]),
    );
    println!("spool status: {}", text(&doctor.stdout).trim());
    agent.stop();
    let audit = finish(&mut reader("audit"));
    println!("audit: {}", text(&audit.stdout).trim());
    gateway.stop();
}

/// Where packages are installed.
trait Machine {
    /// One of their programs.
    fn command(&self, program: &str) -> Command;

    /// A directory for data: as the programs name it, and from here.
    fn directory(&self) -> (String, PathBuf);
}

/// A Debian in a directory.
struct Root(TempDir);

impl Root {
    /// A copy of the one that was made for this.
    fn clean() -> Self {
        let made = PathBuf::from(env::var_os("ZK_TEST_DEBIAN").expect(BY_XTASK));
        let root = TempDir::new_in(made.parent().unwrap()).unwrap();
        finish(
            Command::new("cp")
                .arg("--archive")
                .arg(made.join("."))
                .arg(root.path()),
        );
        fs::create_dir_all(root.path().join("srv/zk-test")).unwrap();
        fs::write(root.path().join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        Self(root)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn dpkg(&self, arguments: &[&str]) -> Output {
        let mut dpkg = Command::new("chroot");
        dpkg.arg(self.0.path()).arg("dpkg").args(arguments);
        dpkg.stdin(Stdio::null())
            .env("DEBIAN_FRONTEND", "noninteractive");
        finish(&mut dpkg)
    }

    fn install(&self, package: &Path, options: &[&str]) {
        let name = package.file_name().unwrap().to_str().unwrap();
        fs::copy(package, self.path("tmp").join(name)).unwrap();
        let file = format!("/tmp/{name}");
        self.dpkg(&[options, &["--install", &file]].concat());
        fs::remove_file(self.path("tmp").join(name)).unwrap();
    }
}

impl Machine for Root {
    fn command(&self, program: &str) -> Command {
        // /proc, and nothing of it left afterwards
        let script = "mount -t proc proc $0/proc && exec chroot $0 \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]);
        command
            .arg(self.0.path())
            .arg(format!("/usr/bin/{program}"));
        command
    }

    fn directory(&self) -> (String, PathBuf) {
        ("/srv/zk-test".to_owned(), self.path("srv/zk-test"))
    }
}

/// Packages of arm64, unpacked, and their programs run by qemu.
struct Emulated {
    tree: TempDir,
    data: TempDir,
}

impl Emulated {
    fn with(packages: &[PathBuf]) -> Self {
        let (tree, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for package in packages {
            finish(
                Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(package)
                    .arg(tree.path()),
            );
        }
        Self { tree, data }
    }
}

impl Machine for Emulated {
    fn command(&self, program: &str) -> Command {
        let path = self.tree.path().join("usr/bin").join(program);
        // the emulator would tell it its own name, and not where its link leads
        let path = path.canonicalize().unwrap();
        let mut command = Command::new("qemu-aarch64");
        command.args(["-L", "/usr/aarch64-linux-gnu"]).arg(path);
        command
    }

    fn directory(&self) -> (String, PathBuf) {
        let path = self.data.path();
        (path.to_str().unwrap().to_owned(), path.to_owned())
    }
}

/// A service. Ends with the test, whatever becomes of it.
struct Running {
    child: Child,
    log: Option<BufReader<ChildStderr>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Some(BufReader::new(child.stderr.take().unwrap()));
        Self { child, log }
    }

    /// Waits until it says so; from then on somebody takes what it says.
    fn says(&mut self, what: &str) {
        let mut log = self.log.take().unwrap();
        let mut said = String::new();
        while !said.contains(what) {
            let length = log.read_line(&mut said).unwrap();
            assert_ne!(length, 0, "it ended: {said}");
        }
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                println!("{line}");
            }
        });
    }

    fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With the section of each one's manual.
const PROGRAMS: [(&str, &str); 5] = [
    ("zk-agent", "8"),
    ("zk-ctl", "1"),
    ("zk-gateway", "8"),
    ("zk-reader", "1"),
    ("zk-setup", "1"),
];
