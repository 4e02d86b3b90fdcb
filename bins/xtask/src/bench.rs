//! `cargo xtask bench`: build the benches, run them, and make a table of their
//! rows.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use zk_bench::{Bar, Row};

use crate::lambda;
use crate::test::{
    Dynalite, NODE, aws_path, cargo_command, npm_packages, system_programs, workspace_root,
};

/// What to measure, where, and how to say it.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// One area only.
    area: Option<Area>,

    /// One object of JSON on standard output, instead of the table.
    #[arg(long)]
    json: bool,

    /// Where spool and store write, on the medium that is to be measured.
    /// Default target/bench
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,

    /// The profile to build with; `release` builds faster, `dist` is shipped.
    #[arg(long, default_value = "dist")]
    profile: String,
}

/// A part of the benches that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Area {
    /// A record sealed, against the bare cryptography.
    Seal,
    /// Keys behind zk-hsm against the bare calls; TLS with them; signatures saved.
    Hsm,
    /// A message verified, against the bare signature check.
    Verify,
    /// Appending, draining and opening, against a bare log.
    Spool,
    /// Spool to store through the gateway, against the store alone.
    Store,
    /// The gateway with its store off, against nginx.
    Gateway,
    /// The Lambda function over dynalite, against bare writes to it; its program.
    Lambda,
    /// The agent as it is shipped: memory, first reading, slow chips, drain.
    Agent,
    /// A set-up in AWS looked at, made and taken away: calls and time, on MiniStack.
    Aws,
}

impl Area {
    const ALL: [Self; 9] = [
        Self::Seal,
        Self::Hsm,
        Self::Verify,
        Self::Spool,
        Self::Store,
        Self::Gateway,
        Self::Agent,
        Self::Lambda,
        Self::Aws,
    ];

    /// The bench targets, and what to tell each.
    fn targets(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Self::Seal => &[("seal", &[])],
            Self::Hsm => &[("hsm", &[])],
            Self::Verify => &[("verify", &[])],
            Self::Spool => &[("spool", &[]), ("rivals", &[])],
            Self::Store => &[("gateway", &["store"])],
            Self::Gateway => &[("gateway", &["nginx"])],
            Self::Agent => &[("agent", &[])],
            Self::Lambda => &[("lambda", &[])],
            Self::Aws => &[("aws", &[])],
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

/// On what the figures hold.
#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    directory: PathBuf,
    file_system: String,
    /// Of one, five and fifteen minutes, before the first bench.
    load_average: String,
    profile: String,
}

/// Runs `area`, or everything.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace_root()?;
    let areas = arguments.area.map_or(Area::ALL.to_vec(), |area| vec![area]);
    if areas.contains(&Area::Gateway) {
        system_programs(&[("nginx -v", "nginx")])?;
    }
    if areas.contains(&Area::Hsm) {
        system_programs(&[("softhsm2-util --version", "softhsm2")])?;
    }
    if areas.contains(&Area::Spool) {
        system_programs(&[("strace --version", "strace")])?;
    }
    if areas.contains(&Area::Lambda) {
        system_programs(&NODE)?;
        npm_packages(&root)?;
    }
    let dir = arguments.dir.clone();
    let dir = dir.unwrap_or_else(|| root.join("target/bench"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let file_system = file_system(&dir)?;
    ensure!(
        !["tmpfs", "ramfs"].contains(&&*file_system),
        "{} is on {file_system}, in memory, where a sync costs nothing: give --dir a directory \
         on a disk",
        dir.display()
    );

    let executables = build(&root, &arguments.profile, &areas)?;
    let machine = Machine {
        cpu: cpu()?,
        cores: std::thread::available_parallelism()?.get(),
        kernel: read("/proc/sys/kernel/osrelease")?,
        load_average: read("/proc/loadavg")?
            .split(' ')
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
        profile: arguments.profile.clone(),
        directory: dir,
        file_system,
    };
    let mut rows = Vec::new();
    for area in areas {
        eprintln!("measuring {}", format!("{area:?}").to_lowercase());
        rows.extend(match area {
            Area::Lambda => measure_lambda(&root, &executables, &machine)?,
            Area::Agent => {
                let program = agent(&root, &arguments.profile)?;
                let environment = [("ZK_BENCH_AGENT", program.into())];
                measure(&executables, &machine, area, &environment)?
            }
            Area::Aws => {
                let zip = lambda::build(&root, lambda::Arch::host()?)?;
                let environment = [
                    ("PATH", aws_path(&root)?),
                    ("ZK_BENCH_LAMBDA_ZIP", zip.into()),
                ];
                measure(&executables, &machine, area, &environment)?
            }
            _ => measure(&executables, &machine, area, &[])?,
        });
    }
    let report = Report { machine, rows };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// Builds the benches: the name of each, and its file.
///
/// Always of the whole workspace: with one package alone cargo would choose
/// other features of the dependencies and build them all again.
fn build(root: &Path, profile: &str, areas: &[Area]) -> Result<HashMap<String, PathBuf>> {
    let mut command = cargo_command(root);
    command.args(["bench", "--locked", "--workspace", "--no-run"]);
    command.args(["--profile", profile]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let targets = areas.iter().flat_map(|area| area.targets());
    for target in targets.map(|(name, _)| *name).collect::<BTreeSet<_>>() {
        command.args(["--bench", target]);
        if target == "rivals" {
            command.args(["--features", "zk-spool-rivals/rivals"]);
        }
    }
    let built = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        built.status.success(),
        "the benches do not build: {}",
        built.status
    );
    let mut executables = HashMap::new();
    for line in built.stdout.lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        let target = &message["target"];
        let bench = target["kind"][0] == "bench";
        if let (true, Some(name), Some(file)) = (
            bench,
            target["name"].as_str(),
            message["executable"].as_str(),
        ) {
            executables.insert(name.to_owned(), file.into());
        }
    }
    Ok(executables)
}

/// Builds the agent as its package has it, without what its tests turn on.
fn agent(root: &Path, profile: &str) -> Result<PathBuf> {
    let mut command = cargo_command(root);
    command.args(["build", "--locked", "--profile", profile]);
    // both are in the package, and each may turn on something of what they share
    command.args(["--package", "zk-agent", "--package", "zk-ctl"]);
    command.args([
        "--bin",
        "zk-agent",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let built = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        built.status.success(),
        "the agent does not build: {}",
        built.status
    );
    for line in built.stdout.lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if let Some(program) = message["executable"].as_str() {
            return Ok(program.into());
        }
    }
    bail!("cargo has built no zk-agent")
}

fn measure(
    executables: &HashMap<String, PathBuf>,
    machine: &Machine,
    area: Area,
    environment: &[(&str, OsString)],
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, arguments) in area.targets() {
        let executable = executables.get(*name);
        let executable = executable.with_context(|| format!("cargo has built no bench {name}"))?;
        let mut command = Command::new(executable);
        command
            .args(*arguments)
            .env("ZK_BENCH_DIR", &machine.directory)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the bench")?;
        let stdout = child.stdout.take().context("no output")?;
        for line in BufReader::new(stdout).lines() {
            let row: Row =
                serde_json::from_str(&line?).context("a bench printed something else")?;
            eprintln!("  {}", row.name);
            rows.push(row);
        }
        let status = child.wait()?;
        ensure!(status.success(), "the bench of {area:?} failed: {status}");
    }
    Ok(rows)
}

/// With the zip, and with DynamoDB's stand-in.
fn measure_lambda(
    root: &Path,
    executables: &HashMap<String, PathBuf>,
    machine: &Machine,
) -> Result<Vec<Row>> {
    let zip = lambda::build(root, lambda::Arch::host()?)?;
    let dynalite = Dynalite::start(root)?;
    let environment = [
        ("PATH", aws_path(root)?),
        ("ZK_BENCH_LAMBDA_ZIP", zip.into()),
        ("ZK_BENCH_DYNALITE", dynalite.endpoint().into()),
        ("AWS_ENDPOINT_URL_DYNAMODB", dynalite.endpoint().into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
    ];
    let rows = measure(executables, machine, Area::Lambda, &environment)?;
    dynalite.stop()?;
    Ok(rows)
}

fn print(report: &Report) {
    let Machine {
        cpu,
        cores,
        kernel,
        directory,
        file_system,
        load_average,
        profile,
    } = &report.machine;
    println!("{cpu}, {cores} cores, Linux {kernel}, profile {profile}");
    println!(
        "files in {} on {file_system}; load average before: {load_average}\n",
        directory.display()
    );
    println!("| ours | against | ours | theirs | unit | ratio | spread | bar | |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for row in &report.rows {
        let number = |value: Option<f64>| value.map_or("–".to_owned(), rounded);
        let bar = match row.bar {
            None => "–".to_owned(),
            Some(Bar::AtLeast(least)) => format!("≥ {least}"),
            Some(Bar::AtMost(most)) => format!("≤ {most}"),
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} to {} | {bar} | {} |",
            row.name,
            row.against.as_deref().unwrap_or("–"),
            rounded(row.ours),
            number(row.theirs),
            row.unit,
            number(row.ratio),
            rounded(row.spread[0]),
            rounded(row.spread[1]),
            match row.holds {
                None => "",
                Some(true) => "holds",
                Some(false) => "**missed**",
            }
        );
    }
}

/// Three digits that count.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn cpu() -> Result<String> {
    let text = read("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        // a Pi has only the second
        ["model name", "Model"]
            .contains(&key.trim())
            .then(|| value.trim().to_owned())
    });
    Ok(model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}

/// The type of the file system that holds `path`: that of the longest mount
/// point above it.
fn file_system(path: &Path) -> Result<String> {
    let mounts = read("/proc/self/mountinfo")?;
    // 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda rw
    let found = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let kind = after.split(' ').next()?;
        path.starts_with(point).then_some((point.len(), kind))
    });
    // the last of those with the same mount point hides the others
    match found.max_by_key(|(length, _)| *length) {
        Some((_, kind)) => Ok(kind.to_owned()),
        None => bail!("{} is on no mounted file system", path.display()),
    }
}

fn read(file: &str) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    Ok(text.trim().to_owned())
}
