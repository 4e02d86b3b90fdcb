//! `cargo xtask test`: set up, run, and say how long each stage took.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{fuzz, lambda, package};

/// A part of the tests that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Area {
    /// Each crate and program through its public surface, and end to end.
    Workspace,
    /// Envelopes between our code, Python and OpenSSL; the chip's simulator under
    /// the vendor's Python client.
    Python,
    /// TLS, HTTP, certificates and signatures against curl, nginx and OpenSSL,
    /// keys on SoftHSM2's tokens, and links that the kernel takes away and gives back.
    Peers,
    /// The store on the embedded engine and on dynalite.
    Store,
    /// What goes to AWS, against its stand-ins: MiniStack, moto, cargo-lambda. Alone,
    /// it builds the Lambda function as it is uploaded, and has each call of a set-up
    /// fail; among all, it takes the one that the tests have built, and has some calls
    /// fail.
    Aws,
    /// The demo, built and run as the README says, also on a simulated chip.
    Demo,
    /// Each fuzz target, for a short time and with the same inputs each time.
    Fuzz,
    /// The Debian packages, for amd64 and arm64: built, installed and used, also in a
    /// virtual machine that boots. Needs root, and is not among all.
    Packages,
    /// What takes too long for every day, and is not among all: the Lambda function as
    /// it is uploaded for arm64, run by qemu; the spool's power cuts, more than 100,000
    /// of them, kills and a million records; ten minutes of faults; the packages. As root
    /// the spool gets disks of its own, which lose power and fill up.
    Long,
}

/// Runs `area`, or everything.
pub(crate) fn run(area: Option<Area>) -> Result<()> {
    let root = workspace_root()?;
    let mut stages = Vec::new();
    stage(&mut stages, "set-up", || set_up(&root, area))?;
    let wanted = |one| area.is_none_or(|area| area == one);
    match area {
        None => {
            stage(&mut stages, "build", || test(&root, &["--no-run"]))?;
            // Ignored are those that need a program which set-up has found.
            let all = ["--", "--include-ignored"];
            stage(&mut stages, "tests", || test(&root, &all))?;
        }
        Some(Area::Workspace) => {
            stage(&mut stages, "workspace", || {
                cargo(&root, &["test", "--locked", "--workspace"])
            })?;
        }
        Some(Area::Python) => {
            let python = targets(["python", "zku"]);
            stage(&mut stages, "python", || test(&root, &python))?;
        }
        Some(Area::Peers) => {
            // Those of an HSM are in `certificate`, an authority's in `it`.
            let openssl = targets(["openssl", "certificate", "it"]);
            stage(&mut stages, "openssl", || test(&root, &openssl))?;
            stage(&mut stages, "nginx", || test(&root, &targets(["nginx"])))?;
            stage(&mut stages, "TLS", || test(&root, &targets(["tls"])))?;
            let gateway = [&targets(["gateway"])[..], &["--", "curl::"]].concat();
            let gateway = [&gateway[..], &["--include-ignored"]].concat();
            stage(&mut stages, "curl", || test(&root, &gateway))?;
            let softhsm2 = [&targets(["pkcs11"])[..], &["--", "--include-ignored"]].concat();
            stage(&mut stages, "softhsm2", || test(&root, &softhsm2))?;
            let links = [
                &targets(["publish"])[..],
                &["--", "--include-ignored", "link"],
            ]
            .concat();
            stage(&mut stages, "links", || test(&root, &links))?;
        }
        Some(Area::Store) => {
            let tests = store_tests(&root)?;
            let tests = targets(tests.iter().map(String::as_str));
            stage(&mut stages, "embedded engine", || test(&root, &tests))?;
        }
        Some(Area::Aws | Area::Demo | Area::Fuzz | Area::Packages) => {}
        Some(Area::Long) => {
            let arm64 = lambda::Arch::Arm64;
            let mut zip = PathBuf::new();
            stage(&mut stages, "arm64 zip", || {
                zip = lambda::build(&root, arm64)?;
                Ok(())
            })?;
            stage(&mut stages, "arm64 function", || {
                lambda_on_stand_ins(&root, &zip, runner(arm64)?)
            })?;
            stage(&mut stages, "spool", || {
                let mut command = cargo_command(&root);
                command.args(TEST).args(targets(["spool"]));
                let command = command.env("ZK_SPOOL_CUTS", "100000");
                finish(command.env("ZK_SPOOL_EFFORT", "10"))
            })?;
            let faults = ["--test", "faults", "--", "--nocapture"];
            stage(&mut stages, "faults", || {
                let mut command = cargo_command(&root);
                command.args(TEST).args(faults);
                finish(command.env("ZK_FAULTS_SECONDS", "600"))
            })?;
        }
    }
    if matches!(area, Some(Area::Packages | Area::Long)) {
        stage(&mut stages, "packages", || {
            package::build(&root, &[], &[]).map(drop)
        })?;
        stage(&mut stages, "installed", || installed(&root))?;
        stage(&mut stages, "machine", || machine(&root))?;
    }
    if wanted(Area::Store) {
        stage(&mut stages, "dynalite", || store_on_dynalite(&root))?;
    }
    if wanted(Area::Aws) {
        let mut zip = PathBuf::new();
        stage(&mut stages, "lambda zip", || {
            zip = match area {
                // the tests have built the program, only not for what is shipped
                None => lambda::zip_of_tests(&root)?,
                Some(_) => lambda::build(&root, lambda::Arch::host()?)?,
            };
            Ok(())
        })?;
        stage(&mut stages, "lambda", || {
            lambda_on_stand_ins(&root, &zip, None)
        })?;
        // At each of some hundred calls it fails once: that takes minutes.
        let stride = area.is_some().then_some("1");
        stage(&mut stages, "AWS", || {
            set_up_on_stand_ins(&root, &zip, stride)
        })?;
    }
    if wanted(Area::Demo) {
        let demo = ["run", "--locked", "--release", "--package", "zk-demo"];
        stage(&mut stages, "demo", || cargo(&root, &demo))?;
        let demo = [&demo[..], &["--", "--hsm", "sim"]].concat();
        stage(&mut stages, "demo on a chip", || cargo(&root, &demo))?;
    }
    if wanted(Area::Fuzz) {
        // New inputs are for who has time to look into what they find.
        stage(&mut stages, "fuzz", || {
            fuzz::run(None, FUZZING, Some(1), false)
        })?;
    }
    println!("\nstage                 seconds");
    for (name, took) in stages {
        println!("{name:<20} {:>8.1}", took.as_secs_f64());
    }
    Ok(())
}

/// `cargo test` with the tests that need a foreign program.
///
/// Always of the whole workspace: with one package alone cargo would choose
/// other features of the dependencies and build them all again.
fn test(root: &Path, more: &[&str]) -> Result<()> {
    cargo(root, &[&TEST, more].concat())
}

const TEST: [&str; 5] = [
    "test",
    "--locked",
    "--workspace",
    "--features",
    "zk-tests/peers",
];

fn targets<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    names
        .into_iter()
        .flat_map(|name| ["--test", name])
        .collect()
}

/// What the packages install works, in a clean Debian and on another machine.
fn installed(root: &Path) -> Result<()> {
    ensure!(
        is_root(),
        "packages are installed in a directory of their own with chroot, for which this has to \
         be root: sudo cargo xtask test packages"
    );
    system_programs(&[
        ("debootstrap --version", "debootstrap"),
        ("qemu-aarch64 --version", "qemu-user"),
        (
            "test -e /usr/aarch64-linux-gnu/lib/libc.so.6",
            "libc6-arm64-cross",
        ),
    ])?;
    // as bare as one with systemd can be
    let debian = debian(root, "clean", "systemd,init-system-helpers")?;
    let packages = root.join("target/package");
    let mut command = cargo_command(root);
    command
        .args(TEST)
        .args(["--features", "zk-tests/packages", "--test", "packages"])
        .args(["--", "--nocapture", "--test-threads", "1"])
        .env("ZK_TEST_DEBIAN", debian)
        .env("ZK_TEST_PACKAGES", packages);
    finish(&mut command)
}

/// What the packages install works in a machine that boots.
fn machine(root: &Path) -> Result<()> {
    ensure!(
        lambda::Arch::host()? == lambda::Arch::X86_64,
        "the machine that boots is one of x86_64, and so has to be this one"
    );
    system_programs(&[
        ("debootstrap --version", "debootstrap"),
        ("qemu-system-x86_64 --version", "qemu-system-x86"),
        ("mkfs.ext4 -V", "e2fsprogs"),
    ])?;
    // the kernel with all drivers: that of the cloud has none for 1-Wire
    let booting = "systemd-sysv,init-system-helpers,udev,dbus,kmod,initramfs-tools,softhsm2,\
                   linux-image-amd64";
    let debian = debian(root, "machine", booting)?;
    let mut command = cargo_command(root);
    command
        .args(TEST)
        .args(["--features", "zk-tests/machine", "--test", "machine"])
        .args(["--", "--nocapture"])
        .env("ZK_TEST_MACHINE", debian)
        .env("ZK_TEST_PACKAGES", root.join("target/package"));
    finish(&mut command)
}

/// A Debian in a directory, with these packages and what none can be without: of this
/// machine's release, and from where this machine has its packages.
fn debian(root: &Path, name: &str, packages: &str) -> Result<PathBuf> {
    let debian = root.join("target/debian").join(name);
    if debian.exists() {
        return Ok(debian);
    }
    let sources = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)"])
        .arg("Created-By: Packages")
        .output()?;
    let sources = String::from_utf8(sources.stdout)?;
    let source = sources
        .lines()
        .filter_map(|line| line.trim().split_once(' '))
        .find(|(uri, release)| {
            uri.trim_end_matches('/').ends_with("/debian") && !release.contains('-')
        });
    let (mirror, release) = source.context("apt-get names no source of Debian's packages")?;
    let unfinished = root.join("target/debian/unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    let mut make = Command::new("debootstrap");
    make.arg("--variant=minbase")
        .arg(format!("--include={packages}"))
        .arg(release)
        .arg(&unfinished)
        .arg(mirror);
    finish(&mut make)?;
    // what has been unpacked is not needed a second time
    finish(
        Command::new("chroot")
            .arg(&unfinished)
            .args(["apt-get", "clean"]),
    )?;
    fs::rename(unfinished, &debian)?;
    Ok(debian)
}

/// zk-store's test programs.
fn store_tests(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(root.join("crates/zk-store/tests"))? {
        let name = file?.file_name().into_string().unwrap_or_default();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Those of them that are about a store's file, or look into one, and have
/// nothing to say of a service. All others run on dynalite too.
const STORE_FILE_TESTS: [&str; 2] = ["file", "items"];

fn store_on_dynalite(root: &Path) -> Result<()> {
    let mut names = store_tests(root)?;
    names.retain(|name| !STORE_FILE_TESTS.contains(&name.as_str()));
    let dynalite = Dynalite::start(root)?;
    let mut command = cargo_command(root);
    command
        .args(TEST)
        .args(targets(names.iter().map(String::as_str)))
        .env("ZK_TEST_STORE", "dynamodb:us-east-1")
        .env("AWS_ENDPOINT_URL_DYNAMODB", dynalite.endpoint())
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("no output")?;
    let mut passed = 0;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        // test result: ok. 19 passed; 0 failed; …
        let count = line
            .strip_prefix("test result: ok. ")
            .and_then(|rest| rest.split(' ').next());
        passed += count.map_or(Ok(0), str::parse::<u64>)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "the store's tests on dynalite: {status}");
    let requests = dynalite.stop()?;
    println!(
        "{passed} tests ran on dynalite ({}), with {requests} requests; \
         about files and therefore not among them: {}",
        names.join(", "),
        STORE_FILE_TESTS.join(", ")
    );
    ensure!(
        passed > 0 && requests > passed,
        "they ran on something else"
    );
    Ok(())
}

/// What runs programs for `arch` on this machine, if it can't do that itself.
fn runner(arch: lambda::Arch) -> Result<Option<&'static str>> {
    Ok((arch != lambda::Arch::host()?).then_some(QEMU))
}

/// The tests of the function that is in `zip`, run by `runner`.
fn lambda_on_stand_ins(root: &Path, zip: &Path, runner: Option<&str>) -> Result<()> {
    let dynalite = Dynalite::start(root)?;
    let mut command = cargo_command(root);
    command
        .args(TEST)
        .args(["--features", "zk-tests/aws"])
        .args(targets(["lambda"]))
        .env("PATH", aws_path(root)?)
        .env("ZK_TEST_LAMBDA_ZIP", zip)
        .env("ZK_TEST_DYNALITE", dynalite.endpoint())
        .env("AWS_ENDPOINT_URL_DYNAMODB", dynalite.endpoint())
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    if let Some(runner) = runner {
        command.env("ZK_TEST_LAMBDA_RUNNER", runner);
    }
    finish(&mut command)?;
    let requests = dynalite.stop()?;
    ensure!(requests > 0, "they ran on something else");
    Ok(())
}

/// The tests of a set-up in AWS, which run the programs, and upload `zip`. Of the
/// calls that fail at their turn it is every `stride`th.
fn set_up_on_stand_ins(root: &Path, zip: &Path, stride: Option<&str>) -> Result<()> {
    let tests = targets(["aws_cloud", "aws_identity", "aws_end_to_end"]);
    let features = ["--features", "zk-tests/aws"];
    // with the tests, as without them the programs' dependencies were others
    let mut build = cargo_command(root);
    build
        .arg("build")
        .args(&TEST[1..])
        .args(features)
        .args(&tests);
    finish(build.args(["--bin", "zk-setup", "--bin", "zk-reader"]))?;
    let mut command = cargo_command(root);
    command.args(TEST).args(features).args(&tests);
    if let Some(stride) = stride {
        command.env("ZK_TEST_AWS_STRIDE", stride);
    }
    finish(command.env("ZK_TEST_LAMBDA_ZIP", zip))
}

/// DynamoDB's stand-in, which ends when its standard input does.
pub(crate) struct Dynalite {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    endpoint: String,
}

impl Dynalite {
    pub(crate) fn start(root: &Path) -> Result<Self> {
        let mut command = Command::new("node");
        command
            .args(["--eval", DYNALITE])
            .current_dir(root.join("target/node"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start node")?;
        let stdin = child.stdin.take().context("no input")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
        let mut port = String::new();
        stdout.read_line(&mut port)?;
        let port: u16 = port.trim().parse().context("dynalite does not start")?;
        Ok(Self {
            child,
            stdin,
            stdout,
            endpoint: format!("http://127.0.0.1:{port}"),
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How many requests it had.
    pub(crate) fn stop(mut self) -> Result<u64> {
        drop(self.stdin);
        let mut requests = String::new();
        self.stdout.read_to_string(&mut requests)?;
        self.child.wait()?;
        requests.trim().parse().context("dynalite failed")
    }
}

const DYNALITE: &str = r"
const server = require('dynalite')({ createTableMs: 0, deleteTableMs: 0, updateTableMs: 0 })
let requests = 0
server.on('request', () => { requests += 1 })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => {
    console.log(requests)
    process.exit()
})
";

fn stage(
    stages: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    println!("\n=== {name}");
    let start = Instant::now();
    work().with_context(|| format!("stage {name} failed"))?;
    stages.push((name, start.elapsed()));
    Ok(())
}

/// Below target/ a Python environment and npm's packages; from the system what
/// only it can give.
fn set_up(root: &Path, area: Option<Area>) -> Result<()> {
    let needs = |one| area.is_none_or(|area| area == one);
    let is_long = area == Some(Area::Long);
    let mut programs = vec![
        ("openssl version", "openssl"),
        ("systemd-analyze --version", "systemd"),
    ];
    if needs(Area::Workspace) || is_long {
        programs.push(("mkfs.ext4 -V", "e2fsprogs"));
    }
    if is_long {
        programs.push(("curl --version", "curl"));
        if runner(lambda::Arch::Arm64)?.is_some() {
            programs.extend(QEMU_PACKAGES);
        }
    }
    if area.is_none() {
        // zk-hsm's tests make C libraries, and look for leaks
        programs.extend([("cc --version", "gcc"), ("valgrind --version", "valgrind")]);
    }
    if needs(Area::Python) || needs(Area::Aws) {
        programs.push(PYTHON);
    }
    if needs(Area::Peers) {
        programs.extend([("curl --version", "curl"), ("nginx -v", "nginx")]);
        programs.extend([
            ("softhsm2-util --version", "softhsm2"),
            ("opensc-tool --info", "opensc"),
            ("cc --version", "gcc"),
            ("ip -V", "iproute2"),
            ("unshare --version", "util-linux"),
        ]);
    }
    if needs(Area::Aws) {
        programs.extend([("curl --version", "curl"), ("nginx -v", "nginx")]);
    }
    if needs(Area::Store) || needs(Area::Aws) || is_long {
        programs.extend(NODE);
    }
    if needs(Area::Fuzz) {
        programs.push(("c++ --version", "g++"));
    }
    system_programs(&programs)?;
    if needs(Area::Python) {
        let environment = root.join("target/venv");
        python_packages(&environment, &[], &root.join("tests/requirements.txt"))?;
        python_packages(&environment, &["--no-deps"], &root.join("tests/zku.txt"))?;
    }
    if needs(Area::Store) || needs(Area::Aws) || is_long {
        npm_packages(root)?;
    }
    if needs(Area::Aws) || is_long {
        aws_packages(root)?;
    }
    Ok(())
}

/// The stand-ins of AWS, and the tools of its Lambda.
///
/// They have an environment of their own, as they want certain versions of
/// packages that the others want too.
pub(crate) fn aws_packages(root: &Path) -> Result<()> {
    system_programs(&[PYTHON])?;
    let environment = root.join("target/venv-aws");
    python_packages(&environment, &[], &root.join("tests/aws-requirements.txt"))
}

/// PATH with AWS's stand-ins and the tools of its Lambda in front.
pub(crate) fn aws_path(root: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let rest = env::split_paths(&path);
    Ok(env::join_paths(
        [root.join("target/venv-aws/bin")].into_iter().chain(rest),
    )?)
}

/// Installs `packages` in a Python environment, which is made if need be.
fn python_packages(environment: &Path, arguments: &[&str], packages: &Path) -> Result<()> {
    let python = environment.join("bin/python");
    if !python.exists() {
        let mut make = Command::new("python3");
        finish(make.args(["-m", "venv"]).arg(environment))?;
    }
    let mut install = Command::new(&python);
    finish(
        install
            .args(["-m", "pip", "install", "--quiet"])
            .args(["--disable-pip-version-check"])
            .args(arguments)
            .arg("--requirement")
            .arg(packages),
    )
}

pub(crate) fn npm_packages(root: &Path) -> Result<()> {
    let directory = root.join("target/node");
    fs::create_dir_all(&directory)?;
    let wanted = root.join("tests/package.json");
    fs::copy(wanted, directory.join("package.json"))?;
    let mut install = Command::new("npm");
    finish(
        install
            .args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
            .args(["--loglevel=error", "--prefix"])
            .arg(directory),
    )
}

/// Sees that these commands work. Where one doesn't, installs the packages it is
/// in when this is root on Debian, or says how.
pub(crate) fn system_programs(programs: &[(&str, &str)]) -> Result<()> {
    // nginx is where only root's PATH leads
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    let works = |command: &str| {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        let command = command.args(words).env("PATH", &path);
        command.output().is_ok_and(|output| output.status.success())
    };
    let missing = || -> Vec<&str> {
        let missing = programs.iter().filter(|(command, _)| !works(command));
        missing
            .flat_map(|(_, packages)| packages.split(' '))
            .collect()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    if is_root() && Path::new("/usr/bin/apt-get").exists() {
        finish(Command::new("apt-get").arg("update"))?;
        let mut install = Command::new("apt-get");
        finish(
            install
                .args(["install", "--yes", "--no-install-recommends"])
                .args(&packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )?;
    }
    let packages = missing();
    ensure!(
        packages.is_empty(),
        "programs are missing; run: sudo apt-get install {}",
        packages.join(" ")
    );
    Ok(())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout == b"0\n")
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    finish(cargo_command(root).args(arguments))
}

pub(crate) fn cargo_command(root: &Path) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root);
    command
}

pub(crate) fn finish(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

pub(crate) fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("the workspace has moved")?;
    Ok(root.to_path_buf())
}

/// Python that can make environments.
const PYTHON: (&str, &str) = ("python3 -c __import__('ensurepip')", "python3 python3-venv");

/// What runs npm's packages, and installs them.
pub(crate) const NODE: [(&str, &str); 2] = [("node --version", "nodejs"), ("npm --version", "npm")];

/// Runs programs for arm64 on another processor, with their C library.
const QEMU: &str = "qemu-aarch64 -L /usr/aarch64-linux-gnu";

const QEMU_PACKAGES: [(&str, &str); 2] = [
    ("qemu-aarch64 --version", "qemu-user"),
    (
        "test -e /usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1",
        "libc6-arm64-cross",
    ),
];

/// Seconds for each fuzz target: time for its corpus, and a little more.
const FUZZING: u64 = 15;
