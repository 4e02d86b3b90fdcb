//! `cargo xtask fuzz`: libFuzzer on the stable toolchain. docs/fuzzing.md

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::test;

/// What is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// A sealed record: parsing, verifying, opening.
    Envelope,
    /// The JSON of a message: parsing, packing, verdicts.
    Message,
    /// A device's HTTP request, up to the gateway's answer and its store.
    Request,
    /// The files of a 1-Wire bus, and the body of a record.
    Sensors,
    /// The files of a spool.
    Spool,
}

impl Target {
    const ALL: [Self; 5] = [
        Self::Envelope,
        Self::Message,
        Self::Request,
        Self::Sensors,
        Self::Spool,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Envelope => "envelope",
            Self::Message => "message",
            Self::Request => "request",
            Self::Sensors => "sensors",
            Self::Spool => "spool",
        }
    }

    /// The package it is in, without the `-fuzz` of its name.
    fn of(self) -> &'static str {
        match self {
            Self::Envelope => "crates/zk-envelope",
            Self::Message => "crates/zk-verify",
            Self::Request => "bins/zk-gateway",
            Self::Sensors => "crates/zk-sensors",
            Self::Spool => "crates/zk-spool",
        }
    }

    /// Larger inputs are not made: the limits in the code are reached by tests.
    fn largest(self) -> usize {
        match self {
            Self::Sensors => 1024,
            Self::Spool => 4096,
            Self::Envelope | Self::Message | Self::Request => 8192,
        }
    }

    /// Where its sources, its corpus and its dictionary are.
    fn home(self, root: &Path) -> PathBuf {
        root.join(self.of()).join("fuzz")
    }
}

/// Runs the targets, or one, each for so many seconds. With a `seed` the inputs are the same each time, as far as the seconds reach.
pub(crate) fn run(
    target: Option<Target>,
    seconds: u64,
    seed: Option<u32>,
    keep: bool,
) -> Result<()> {
    let root = test::workspace_root()?;
    let targets = target.map_or(Target::ALL.to_vec(), |target| vec![target]);
    let programs = build(&root, &targets)?;
    for (target, program) in targets.iter().zip(&programs) {
        fuzz(&root, *target, program, seconds, seed)?;
        if keep {
            minimise(&root, *target, program)?;
        }
    }
    Ok(())
}

/// Builds the targets with counters in the code of the workspace.
///
/// The whole workspace is named, so that the dependencies are those of `cargo
/// test` and are not built again.
fn build(root: &Path, targets: &[Target]) -> Result<Vec<PathBuf>> {
    let mut features = String::from("zk-tests/peers");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root);
    build.args(["test", "--locked", "--workspace", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    for target in targets {
        let package = target.of().rsplit('/').next().unwrap_or_default();
        features += &format!(",{package}-fuzz/libfuzzer");
        build.arg("--test").arg(format!("fuzz_{}", target.name()));
    }
    build.arg("--features").arg(features);
    build.env(
        "RUSTC_WORKSPACE_WRAPPER",
        root.join("bins/xtask/instrument.sh"),
    );
    build.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2");
    build.stderr(std::process::Stdio::inherit());
    let output = build.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the fuzz targets do not build; they need a C++ compiler: sudo apt-get install g++");
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
    let messages: Vec<serde_json::Value> = messages
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("cargo's messages")?;
    let program = |target: &Target| {
        let name = format!("fuzz_{}", target.name());
        let built = messages
            .iter()
            .filter(|message| message["target"]["name"] == name.as_str())
            .find_map(|message| message["executable"].as_str());
        built
            .map(PathBuf::from)
            .with_context(|| format!("cargo built no {name}"))
    };
    targets.iter().map(program).collect()
}

/// First the corpus, then what comes of it.
fn fuzz(
    root: &Path,
    target: Target,
    program: &Path,
    seconds: u64,
    seed: Option<u32>,
) -> Result<()> {
    let work = work(root, target);
    let found = work.join("corpus");
    fs::create_dir_all(&found)?;
    let home = target.home(root);
    let findings = work.join("findings/");
    fs::create_dir_all(&findings)?;
    let mut run = libfuzzer(program, target);
    run.arg(format!("-artifact_prefix={}", findings.display()));
    run.arg(format!("-max_total_time={seconds}"));
    run.arg("-print_final_stats=1");
    if let Some(seed) = seed {
        run.arg(format!("-seed={seed}"));
    }
    let dictionary = home.join("dictionary.txt");
    if dictionary.exists() {
        run.arg(format!("-dict={}", dictionary.display()));
    }
    run.arg(&found).arg(home.join("corpus"));
    let log = work.join("log");
    println!(
        "\n{}: {seconds} s, with its progress in {}",
        target.name(),
        log.display()
    );
    let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
    run.stdout(file.try_clone()?).stderr(file);
    let status = run.status();
    let _ = fs::remove_dir_all(memory());
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        println!("  {}", summary(&text));
        return Ok(());
    }
    for line in failure(&text) {
        println!("{line}");
    }
    let input = text.lines().find_map(|line| {
        line.split_once("Test unit written to ")
            .map(|(_, path)| path)
    });
    let Some(input) = input else {
        bail!(
            "{} ended with {status}; see {}",
            target.name(),
            log.display()
        );
    };
    bail!(
        "{} failed. All of it: {}\nAgain:\n  {} {input}\nSmaller:\n  {} -minimize_crash=1 -max_total_time=60 {input}",
        target.name(),
        log.display(),
        program.display(),
        program.display(),
    )
}

/// Replaces the corpus that is kept by the inputs, of all that there are, which
/// together reach most code: a few dozen, found greedily.
fn minimise(root: &Path, target: Target, program: &Path) -> Result<()> {
    let work = work(root, target);
    let kept = target.home(root).join("corpus");
    let (empty, reached) = (work.join("empty"), work.join("reached"));
    for old in [&empty, &reached] {
        fs::remove_dir_all(old)
            .or_else(|_| fs::remove_file(old))
            .ok();
    }
    fs::create_dir_all(&empty)?;
    fs::create_dir_all(&kept)?;
    let mut merge = libfuzzer(program, target);
    // What is reached, not how often. What each input reaches is in the control file.
    merge.args(["-merge=1", "-use_counters=0"]);
    merge.arg(format!("-merge_control_file={}", reached.display()));
    merge.arg(&empty).arg(&kept).arg(work.join("corpus"));
    let log = merge.output();
    let _ = fs::remove_dir_all(memory());
    let log = log.context("cannot start the merge")?;
    if !log.status.success() {
        bail!(
            "the merge failed:\n{}",
            String::from_utf8_lossy(&log.stderr)
        );
    }
    let chosen = choose(&fs::read_to_string(&reached)?)?;
    let contents: Vec<_> = chosen.iter().map(fs::read).collect::<Result<_, _>>()?;
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    for (path, content) in chosen.iter().zip(&contents) {
        let name = path.file_name().context("a file of the corpus")?;
        fs::write(kept.join(name), content)?;
    }
    println!(
        "{}: {} inputs in {}",
        target.name(),
        chosen.len(),
        kept.display()
    );
    Ok(())
}

/// Reads libFuzzer's control file of a merge: two numbers, the names of that many
/// files, and for each of them a line `FT <number> <what it reaches>…`.
fn choose(control: &str) -> Result<Vec<PathBuf>> {
    let mut lines = control.lines();
    let count: usize = lines.next().context("no number of files")?.parse()?;
    let files: Vec<PathBuf> = lines
        .by_ref()
        .skip(1)
        .take(count)
        .map(PathBuf::from)
        .collect();
    let mut reached: Vec<(usize, HashSet<&str>)> = lines
        .filter_map(|line| {
            let mut words = line.strip_prefix("FT ")?.split(' ');
            Some((words.next()?.parse().ok()?, words.collect()))
        })
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < KEPT {
        // The most that is new; of equals the first, which is the smallest.
        let best = reached.iter().rev().max_by_key(|(_, new)| new.len());
        let Some((file, new)) = best.filter(|(_, new)| !new.is_empty()).cloned() else {
            break;
        };
        chosen.push(files.get(file).context("a file of no name")?.clone());
        for (_, rest) in &mut reached {
            rest.retain(|what| !new.contains(what));
        }
    }
    Ok(chosen)
}

fn libfuzzer(program: &Path, target: Target) -> Command {
    let mut command = Command::new(program);
    command.args(["-timeout=20", "-rss_limit_mb=1024"]);
    command.arg(format!("-max_len={}", target.largest()));
    command.env("RUST_BACKTRACE", "1");
    let _ = fs::create_dir(memory());
    if memory().is_dir() {
        command.env("TMPDIR", memory());
    }
    command
}

/// Where files are in memory they are made a hundred times as often.
fn memory() -> PathBuf {
    PathBuf::from(format!("/dev/shm/zk-fuzz-{}", std::process::id()))
}

/// Below target/: what was found, and where it is looked for.
fn work(root: &Path, target: Target) -> PathBuf {
    root.join("target/fuzz").join(target.name())
}

/// Inputs run, and the code that they reached.
fn summary(log: &str) -> String {
    let all = log.lines().find_map(|line| {
        line.split_once("inline 8-bit counters): ")?
            .1
            .split(' ')
            .next()
    });
    let done = log.lines().rev().find(|line| line.contains("DONE"));
    let field = |name: &str| {
        let rest = done?.split_once(name)?.1;
        rest.trim_start().split(' ').next()
    };
    let known = |value: Option<&str>| value.unwrap_or("?").to_owned();
    format!(
        "{} inputs; {} of {} branches of the workspace's code in it; {} inputs with something new of their own",
        known(done.and_then(|line| line.trim_start_matches('#').split_whitespace().next())),
        known(field("cov:")),
        known(all),
        known(field("corp:").and_then(|inputs| inputs.split('/').next())),
    )
}

/// The panic, or what libFuzzer says of a time-out or of memory.
fn failure(log: &str) -> Vec<&str> {
    let says = |line: &&str| line.contains("panicked at") || line.contains("ERROR: libFuzzer");
    let Some(start) = log.lines().position(|line| says(&line)) else {
        return Vec::new();
    };
    let rest = log.lines().skip(start).take(6);
    rest.take_while(|line| !line.is_empty() && *line != "stack backtrace:")
        .collect()
}

/// The most inputs in a corpus that is kept.
const KEPT: usize = 48;
