//! The spool against a bare log that writes as many bytes in as many calls,
//! and syncs as often; and what a million records cost to open.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;
use zk_bench::{Bar, Bare, ROUNDS, Role, Row, by_turns, directory, median, time};
use zk_spool::{Options, Spool};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[1..] {
        [role, dir] if role == "fill" => fill(Path::new(dir)),
        [role, dir] if role == "open" => open(Path::new(dir)),
        _ => {
            let parent = directory(env!("CARGO_TARGET_TMPDIR"));
            fs::create_dir_all(&parent).unwrap();
            let dir = tempfile::tempdir_in(parent).unwrap();
            for size in SIZES {
                singly(&dir, size);
                in_groups(&dir, size);
            }
            a_million(&dir);
        }
    }
}

fn singly(dir: &TempDir, size: usize) {
    let path = |of: &str| dir.path().join(format!("singly-{size}{of}"));
    let spool = Spool::open(path(""), options()).unwrap();
    let mut bare = Bare::create(path("-bare")).unwrap();
    let record = record(size);
    let rounds = rates(
        SINGLY,
        1,
        || assert!(spool.append_with(|_| made(&record)).is_ok()),
        || bare.append(&[&record]).unwrap(),
    );
    compare(
        &format!("spool: append, one at a time, {size} B"),
        0.95,
        &rounds,
    );
}

fn in_groups(dir: &TempDir, size: usize) {
    let path = |of: &str| dir.path().join(format!("groups-{size}{of}"));
    let spool = Spool::open(path(""), options()).unwrap();
    let mut bare = Bare::create(path("-bare")).unwrap();
    let record = record(size);
    let group = vec![&record[..]; GROUP];
    let append = || {
        let records = (0..GROUP).map(|_| |_| made(&record));
        let results = spool.append_batch_with(records).unwrap();
        assert!(results.iter().all(Result::is_ok));
    };
    let (mut written, mut bare_written) = (0, 0);
    let rounds = rates(
        GROUPS,
        GROUP,
        || written += writing(append),
        || bare_written += writing(|| bare.append(&group).unwrap()),
    );
    compare(
        &format!("spool: append, groups of 64, {size} B"),
        0.9,
        &rounds,
    );

    let groups = (ROUNDS + 1) * TURNS * GROUPS;
    let payload = (groups * GROUP * size) as f64;
    let per_byte = [written, bare_written].map(|bytes| bytes as f64 / payload);
    let bar = Some(Bar::AtMost(1.3));
    print(&Row::alone(
        &format!("spool: bytes written per byte, groups of 64, {size} B"),
        "B/B",
        bar,
        &per_byte[..1],
    ));
    print(&Row::compare(
        &format!("spool: bytes written, groups of 64, {size} B"),
        Bare::NAME,
        "B/B",
        None,
        &[(per_byte[0], per_byte[1])],
    ));

    let rounds = rates(
        GROUPS,
        GROUP,
        || {
            let records = spool.peek(GROUP, GROUP * (size + FRAMING)).unwrap();
            assert_eq!(records.len(), GROUP);
            spool.ack(records[GROUP - 1].position()).unwrap();
        },
        || assert_eq!(bare.drain(GROUP, size).unwrap().len(), GROUP),
    );
    compare(
        &format!("spool: drain, 64 at a time, {size} B"),
        0.9,
        &rounds,
    );
}

/// Processes of their own: each opens what the last one left when it was
/// killed.
fn a_million(dir: &TempDir) {
    let dir = dir.path().join("million");
    eprintln!("writing a million records");
    start("fill", &dir, "filled");
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let said = start("open", &dir, "opened");
        let numbers = said.split(' ').map(|number| number.parse().unwrap());
        figures.push(numbers.collect::<Vec<f64>>());
    }
    let column = |n: usize| figures.iter().map(|row| row[n]).collect::<Vec<_>>();
    print(&Row::alone(
        "spool: open 1 M records after kill -9",
        "ms",
        Some(Bar::AtMost(50.0)),
        &column(0),
    ));
    print(&Row::alone(
        "spool: memory with 1 M records, PSS",
        "MiB",
        Some(Bar::AtMost(16.0)),
        &column(1),
    ));
    print(&Row::alone(
        "spool: memory with 1 M records, RSS",
        "MiB",
        None,
        &column(2),
    ));
}

fn fill(dir: &Path) {
    let spool = Spool::open(dir, options()).unwrap();
    let record = record(SIZES[0]);
    for _ in 0..1000 {
        let records = (0..1000).map(|_| |_| made(&record));
        spool.append_batch_with(records).unwrap();
    }
    println!("filled");
    Role::wait_for_the_end();
}

fn open(dir: &Path) {
    let start = Instant::now();
    let spool = Spool::open(dir, options()).unwrap();
    let took = start.elapsed().as_secs_f64() * 1e3;
    assert!(spool.stats().unwrap().records >= 1_000_000);
    assert_eq!(spool.peek(GROUP, usize::MAX).unwrap().len(), GROUP);
    spool.append_with(|_| made(&record(SIZES[0]))).unwrap();
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    println!(
        "opened {took} {} {}",
        mib(&rollup, "Pss:"),
        mib(&rollup, "Rss:")
    );
    Role::wait_for_the_end();
}

fn start(role: &str, dir: &Path, word: &str) -> String {
    let arguments = [role.as_ref(), dir.as_os_str()];
    Role::start(arguments).unwrap().say(word).unwrap()
}

fn mib(rollup: &str, key: &str) -> f64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<f64>().unwrap() / 1024.0
}

/// Records a second of both sides. Within a round they take many short turns,
/// so that a slow moment of the disk falls on both, and the median turn counts:
/// a stall that hits one of them says nothing of either.
fn rates(
    calls: usize,
    records: usize,
    mut ours: impl FnMut(),
    mut theirs: impl FnMut(),
) -> Vec<(f64, f64)> {
    let times = calls as u32;
    let mut round = || {
        let turns = by_turns(
            TURNS,
            || time(times, &mut ours).as_secs_f64(),
            || time(times, &mut theirs).as_secs_f64(),
        );
        let rate = |turns: Vec<f64>| (calls * records) as f64 / median(&turns);
        let (ours, theirs) = turns.into_iter().unzip();
        (rate(ours), rate(theirs))
    };
    // the first makes the segments and warms what there is to warm
    round();
    (0..ROUNDS).map(|_| round()).collect()
}

fn compare(name: &str, least: f64, rounds: &[(f64, f64)]) {
    let bar = Some(Bar::AtLeast(least));
    print(&Row::compare(name, Bare::NAME, "records/s", bar, rounds));
}

fn print(row: &Row) {
    row.print().unwrap();
}

/// Bytes that this process sends to the disk meanwhile, in whole pages.
fn writing(work: impl FnOnce()) -> u64 {
    let written = || {
        let io = fs::read_to_string("/proc/self/io").unwrap();
        let line = io.lines().find_map(|l| l.strip_prefix("write_bytes: "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = written();
    work();
    written() - before
}

fn options() -> Options {
    Options {
        cap: 1 << 30,
        ..Options::default()
    }
}

fn record(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 167 % 251) as u8).collect()
}

fn made(record: &[u8]) -> Result<Vec<u8>, Infallible> {
    Ok(record.to_vec())
}

/// Bytes of a record.
const SIZES: [usize; 2] = [600, 2048];
/// Bytes that a log puts around each, at most.
const FRAMING: usize = 36;
/// Records in a group.
const GROUP: usize = 64;

/// Calls in a turn.
const SINGLY: usize = 4;
const GROUPS: usize = 2;
/// Turns in a round.
const TURNS: usize = 50;
