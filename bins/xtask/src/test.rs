//! `cargo xtask test`: set up, run, and say how long each stage took.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A part of the tests that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Area {
    /// Each crate and program through its public surface, and end to end.
    Workspace,
    /// Envelopes between our code, Python and OpenSSL.
    Python,
    /// The demo, built and run as the README says.
    Demo,
}

/// Runs `area`, or everything.
pub(crate) fn run(area: Option<Area>) -> Result<()> {
    let root = workspace_root()?;
    let mut stages = Vec::new();
    stage(&mut stages, "set-up", || set_up(&root))?;
    // Always the whole workspace: with one package alone cargo would choose
    // other features of the dependencies and build them all again.
    let tests = [
        "test",
        "--locked",
        "--workspace",
        "--features",
        "zk-tests/peers",
    ];
    match area {
        Some(Area::Workspace) => {
            stage(&mut stages, "workspace", || {
                cargo(&root, &["test", "--locked", "--workspace"])
            })?;
        }
        Some(Area::Python) => {
            let python = [&tests[..], &["--test", "python"]].concat();
            stage(&mut stages, "python", || cargo(&root, &python))?;
        }
        Some(Area::Demo) => {}
        None => {
            let build = [&tests[..], &["--no-run"]].concat();
            stage(&mut stages, "build", || cargo(&root, &build))?;
            // Ignored are those that need a program which set-up has found.
            let all = [&tests[..], &["--", "--include-ignored"]].concat();
            stage(&mut stages, "tests", || cargo(&root, &all))?;
        }
    }
    if area.is_none_or(|area| area == Area::Demo) {
        let demo = ["run", "--locked", "--release", "--package", "zk-demo"];
        stage(&mut stages, "demo", || cargo(&root, &demo))?;
    }
    println!("\nstage                 seconds");
    for (name, took) in stages {
        println!("{name:<20} {:>8.1}", took.as_secs_f64());
    }
    Ok(())
}

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

/// Below target/ a Python environment; from the system what only it can give.
fn set_up(root: &Path) -> Result<()> {
    system_program("openssl", "openssl")?;
    system_program("curl", "curl")?;
    system_program("python3", "python3 python3-venv")?;
    let environment = root.join("target/venv");
    let python = environment.join("bin/python");
    if !python.exists() {
        let mut make = Command::new("python3");
        finish(make.args(["-m", "venv"]).arg(&environment))?;
    }
    let mut install = Command::new(&python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    finish(
        install
            .arg("--requirement")
            .arg(root.join("tests/requirements.txt")),
    )
}

/// Finds a program on the PATH, or installs the package that has it when this
/// is root on Debian, or says how.
fn system_program(program: &str, packages: &str) -> Result<()> {
    let found = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    if found() {
        return Ok(());
    }
    let root_user = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    if root_user && Path::new("/usr/bin/apt-get").exists() {
        finish(Command::new("apt-get").arg("update"))?;
        let mut install = Command::new("apt-get");
        finish(
            install
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages.split(' ')),
        )?;
    }
    if found() {
        return Ok(());
    }
    bail!("{program} is missing; run: sudo apt-get install {packages}")
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    finish(Command::new(cargo).args(arguments).current_dir(root))
}

fn finish(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("the workspace has moved")?;
    Ok(root.to_path_buf())
}
