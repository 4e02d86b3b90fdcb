//! A machine that boots: QEMU, with a Debian of its own on its disk.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::debs::{BY_XTASK, finish, text};

/// It, running. A shell of root's in it is at the other end of a wire; what it says
/// on its console is shown when something fails. Gone with this.
pub(crate) struct Machine {
    _qemu: Qemu,
    wire: BufReader<UnixStream>,
    deadline: Instant,
    /// Of this start, as the kernel names it.
    pub(crate) boot: String,
    dir: TempDir,
}

/// What a script did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit status.
    pub(crate) status: i32,
    /// What it said, on both ways.
    pub(crate) said: String,
}

impl Machine {
    /// Boots one that has `files`, each at its place. `within` is for all that is
    /// then done with it, where the processor helps; else it gets more.
    pub(crate) fn start(files: &[(PathBuf, &str)], within: Duration) -> Self {
        let made = PathBuf::from(env::var_os("ZK_TEST_MACHINE").expect(BY_XTASK));
        let dir = TempDir::new_in(made.parent().unwrap()).unwrap();
        let image = image(&made, files, dir.path());
        let console = dir.path().join("console");
        // What only emulates takes longer.
        let ways = [
            ("kvm", Duration::from_secs(15), within),
            ("tcg", Duration::from_secs(120), 5 * within),
        ];
        for (accelerator, first, within) in ways {
            File::create(&console).unwrap();
            let _ = fs::remove_file(dir.path().join("wire"));
            let mut qemu = Qemu(
                qemu(accelerator, &made, &image, dir.path())
                    .spawn()
                    .unwrap(),
            );
            if !begins(&mut qemu.0, &console, first) {
                println!("with -accel {accelerator} no machine starts here");
                continue;
            }
            let wire = UnixStream::connect(dir.path().join("wire")).unwrap();
            let mut machine = Self {
                _qemu: qemu,
                wire: BufReader::new(wire),
                deadline: Instant::now() + within,
                boot: String::new(),
                dir,
            };
            machine.boot = machine.answer();
            return machine;
        }
        panic!("no machine starts");
    }

    /// Runs a script of bash as root.
    pub(crate) fn run(&mut self, script: &str) -> Done {
        self.send(script);
        let answer = self.answer();
        let (status, said) = answer.split_once(' ').unwrap();
        Done {
            status: status.parse().unwrap(),
            said: text(&STANDARD.decode(said).unwrap()),
        }
    }

    /// The same, and it has to succeed. Returns what it said.
    pub(crate) fn does(&mut self, script: &str) -> String {
        let done = self.run(script);
        if done.status != 0 {
            let why = format!("{script}\nended with {}: {}", done.status, done.said);
            self.fails(&why);
        }
        done.said
    }

    /// Runs it again and again until it succeeds. Returns what it said then.
    pub(crate) fn until(&mut self, script: &str) -> String {
        // that of the whole is for what takes long, and not for what never happens
        let seconds = 120;
        self.does(&format!(
            "tries() {{\n{script}\n}}\n\
             end=$((SECONDS + {seconds}))\n\
             until said=$(tries 2>&1); do\n\
               [ $SECONDS -lt $end ] || {{ echo \"$said\"; echo 'not in {seconds} s'; exit 1; }}\n\
               sleep 0.2\n\
             done\n\
             echo \"$said\""
        ))
    }

    /// A property of a unit, as systemd shows it.
    pub(crate) fn property(&mut self, unit: &str, name: &str) -> String {
        let said = self.does(&format!("systemctl show --value -p {name} {unit}"));
        said.trim().to_owned()
    }

    /// Runs `script`, with which this boot ends, and waits for the next one.
    pub(crate) fn boots_again(&mut self, script: &str) {
        self.send(script);
        loop {
            let answer = self.answer();
            // of the script, if it comes to that
            if !answer.contains(' ') {
                assert_ne!(answer, self.boot);
                self.boot = answer;
                return;
            }
        }
    }

    fn send(&mut self, script: &str) {
        let line = STANDARD.encode(script) + "\n";
        if let Err(error) = self.wire.get_mut().write_all(line.as_bytes()) {
            self.fails(&format!("{script}\nis not taken: {error}"));
        }
    }

    fn answer(&mut self) -> String {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // a time of 0 would be none at all
        let left = left.max(Duration::from_millis(1));
        self.wire.get_ref().set_read_timeout(Some(left)).unwrap();
        let mut line = String::new();
        match self.wire.read_line(&mut line) {
            Ok(1..) => line.trim_end().to_owned(),
            ended => self.fails(&format!("the machine does not answer in time: {ended:?}")),
        }
    }

    fn fails(&mut self, why: &str) -> ! {
        let console = fs::read(self.dir.path().join("console")).unwrap_or_default();
        let console = text(&console);
        let lines: Vec<_> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        panic!("{why}\n\nthe console's last lines:\n{last}");
    }
}

/// Ends with the test, whatever becomes of it.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A disk with that Debian and `files`, and with what is at the wire's end in it.
fn image(made: &Path, files: &[(PathBuf, &str)], dir: &Path) -> PathBuf {
    let (tree, image) = (dir.join("tree"), dir.join("disk"));
    let mut copy = Command::new("cp");
    finish(copy.args(["--archive", "--link"]).arg(made).arg(&tree));
    let place = |name: &str| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // what is there is a link to what was made
        let _ = fs::remove_file(&path);
        path
    };
    let write = |name: &str, text: &str| fs::write(place(name), text).unwrap();
    write("etc/hosts", "127.0.0.1 localhost\n");
    write("etc/hostname", "machine\n");
    write("usr/local/sbin/wire", WIRE);
    write("etc/systemd/system/wire.service", WIRE_UNIT);
    symlink(
        "../wire.service",
        place("etc/systemd/system/multi-user.target.wants/wire.service"),
    )
    .unwrap();
    for (file, name) in files {
        let mut copy = Command::new("cp");
        finish(copy.args(["--recursive"]).arg(file).arg(place(name)));
    }
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-E", "root_owner=0:0", "-d"]).arg(&tree);
    finish(make.arg(&image).arg("3G"));
    fs::remove_dir_all(tree).unwrap();
    image
}

/// What starts it. It has no network but its own loopback.
fn qemu(accelerator: &str, made: &Path, image: &Path, dir: &Path) -> Command {
    let boot = |name: &str| {
        let mut files = fs::read_dir(made.join("boot")).unwrap().map(Result::unwrap);
        let file = files.find(|file| file.file_name().to_str().unwrap().starts_with(name));
        file.unwrap().path()
    };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.stdin(Stdio::null());
    qemu.args([
        "-accel",
        accelerator,
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ])
    .args(["-nodefaults", "-no-user-config", "-display", "none"])
    .arg("-kernel")
    .arg(boot("vmlinuz-"))
    .arg("-initrd")
    .arg(boot("initrd.img-"))
    .args(["-append", "root=/dev/vda rw console=ttyS0 panic=-1"])
    .arg("-drive")
    .arg(format!(
        "file={},if=virtio,format=raw,cache=writeback",
        image.display()
    ))
    .arg("-serial")
    .arg(format!("file:{}", dir.join("console").display()))
    .args(["-device", "virtio-rng-pci", "-device", "virtio-serial"])
    .arg("-chardev")
    .arg(format!(
        "socket,id=wire,path={},server=on,wait=off",
        dir.join("wire").display()
    ))
    .args(["-device", "virtserialport,chardev=wire,name=wire"]);
    qemu
}

/// Whether a kernel says something on its console by then. There are machines whose
/// /dev/kvm takes all that QEMU asks of it, and then runs nothing.
fn begins(qemu: &mut Child, console: &Path, within: Duration) -> bool {
    let end = Instant::now() + within;
    while Instant::now() < end && qemu.try_wait().unwrap().is_none() {
        if text(&fs::read(console).unwrap()).contains("Linux version") {
            return true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    false
}

/// Takes scripts, and answers with exit status and what was said, a line each.
const WIRE: &str = r#"
exec 3<>/dev/virtio-ports/wire
cat /proc/sys/kernel/random/boot_id >&3
cd /root
while read -r line <&3; do
    said=$(base64 -d <<< "$line" | bash 2>&1 3>&-)
    status=$?
    echo "$status $(base64 -w 0 <<< "$said")" >&3
done
"#;

const WIRE_UNIT: &str = "
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash /usr/local/sbin/wire
Environment=HOME=/root LANG=C.UTF-8 SYSTEMD_PAGER=
StandardError=journal+console
";
