//! The spool beside redb, fjall, SQLite and sled, and all of them against a bare
//! log, by turns in one run.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use zk_bench::{Role, Row, directory, median, time};
use zk_spool_rivals::{Engine, Queue, disk, files};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let engine = |text: &str| Engine::ALL[text.parse::<usize>().unwrap()];
    match &arguments[1..] {
        [role, which, dir] if role == "account" => account(engine(which), Path::new(dir)),
        [role, which, dir] if role == "syncs" => syncs(engine(which), Path::new(dir)),
        [role, which, dir] if role == "fill" => fill(engine(which), Path::new(dir)),
        [role, which, dir] if role == "open" => open(engine(which), Path::new(dir)),
        _ => {
            let parent = directory(env!("CARGO_TARGET_TMPDIR"));
            fs::create_dir_all(&parent).unwrap();
            let dir = tempfile::tempdir_in(parent).unwrap();
            for size in SIZES {
                speeds(dir.path(), size);
            }
            for which in 0..Engine::ALL.len() {
                accounts(dir.path(), which);
            }
            // the bare log recovers nothing
            for which in 1..Engine::ALL.len() {
                a_million(dir.path(), which);
            }
        }
    }
}

/// Within a round every engine takes many short turns, each time another one
/// first, so that a slow moment of the disk falls on all of them. All that a turn
/// takes counts: an engine that tidies up now and then pays for it.
fn speeds(dir: &Path, size: usize) {
    let dir = dir.join(size.to_string());
    fs::create_dir(&dir).unwrap();
    let mut queues: Vec<_> = (0..Engine::ALL.len())
        .map(|which| Engine::ALL[which].open(&dir.join(which.to_string())))
        .collect();
    let mut random = Random::new(size);
    let single = random.group(1);
    let group = random.group(GROUP);
    let (single, group) = (slices(&single), slices(&group));

    let mut compare = |name: &str, records: usize, calls: u32, call: &mut Call<'_>| {
        eprintln!("  {name}, {size} B");
        let mut rates = vec![Vec::new(); queues.len()];
        // the first makes the files and warms what there is to warm
        for round in 0..=ROUNDS {
            let mut took = vec![0.0; queues.len()];
            for turn in 0..TURNS {
                for place in 0..queues.len() {
                    let which = (turn + place) % queues.len();
                    let queue = &mut *queues[which];
                    took[which] += time(calls / TURNS as u32, || call(queue)).as_secs_f64();
                }
            }
            if round > 0 {
                let rate = |took| f64::from(calls) * records as f64 / took;
                rates
                    .iter_mut()
                    .zip(took)
                    .for_each(|(rates, took)| rates.push(rate(took)));
            }
        }
        let (bare, engines) = rates.split_first().unwrap();
        for (engine, rates) in Engine::ALL[1..].iter().zip(engines) {
            let rounds: Vec<_> = rates.iter().copied().zip(bare.iter().copied()).collect();
            let name = format!("{name}, {size} B: {}", engine.name());
            print(&Row::compare(
                &name,
                Engine::Bare.name(),
                "records/s",
                None,
                &rounds,
            ));
        }
    };
    compare("append groups of 64", GROUP, 100, &mut |queue| {
        queue.append(&group);
    });
    compare("drain 64 at a time", GROUP, 100, &mut |queue| {
        queue.drain(GROUP, size);
    });
    // there is nothing left but what the mixed one needs
    compare("append 64, drain 64", GROUP, 50, &mut |queue| {
        queue.append(&group);
        queue.drain(GROUP, size);
    });
    compare("append singly", 1, 200, &mut |queue| queue.append(&single));
}

type Call<'a> = dyn FnMut(&mut dyn Queue) + 'a;

/// What one engine writes, syncs and leaves, in a process of its own.
fn accounts(dir: &Path, which: usize) {
    let name = Engine::ALL[which].name();
    let said = start(
        "account",
        which,
        &dir.join(format!("account-{which}")),
        "accounted",
    );
    let figures: Vec<f64> = said.split(' ').map(|n| n.parse().unwrap()).collect();
    let rows = [
        ("written per byte, groups of 64", "B/B"),
        ("written per byte, drain", "B/B"),
        ("disk with 100,000 records", "MiB"),
        ("disk when they are drained", "MiB"),
        ("disk after its maintenance", "MiB"),
    ];
    for ((what, unit), figure) in rows.iter().zip(figures) {
        print(&Row::alone(
            &format!("{what}, 600 B: {name}"),
            unit,
            None,
            &[figure],
        ));
    }
    print(&Row::alone(
        &format!("syncs per append, singly: {name}"),
        "1",
        None,
        &[traced(dir, which)],
    ));
}

fn account(engine: Engine, dir: &Path) {
    const RECORDS: usize = 1563 * GROUP;
    let mut queue = engine.open(dir);
    let mut random = Random::new(SIZES[0]);
    let payload = (RECORDS * SIZES[0]) as f64;
    let start = written();
    for _ in 0..RECORDS / GROUP {
        let group = random.group(GROUP);
        queue.append(&slices(&group));
    }
    let appended = written();
    let full = disk(dir);
    for _ in 0..RECORDS / GROUP {
        queue.drain(GROUP, SIZES[0]);
    }
    let drained = written();
    let left = disk(dir);
    queue.maintain();
    let maintained = disk(dir);
    let per_byte = |bytes: u64| bytes as f64 / payload;
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    println!(
        "accounted {} {} {} {} {}",
        per_byte(appended - start),
        per_byte(drained - appended),
        mib(full),
        mib(left),
        mib(maintained)
    );
    Role::wait_for_the_end();
}

/// Calls of fsync and fdatasync, as strace counts them, of one append.
fn traced(dir: &Path, which: usize) -> f64 {
    let count = |appends: usize| {
        let name = format!("syncs-{which}-{appends}");
        let report = dir.join(format!("{name}.strace"));
        let status = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,msync", "-o"])
            .arg(&report)
            .arg(std::env::current_exe().unwrap())
            .args(["syncs", &which.to_string()])
            .arg(dir.join(name))
            .env("APPENDS", appends.to_string())
            .status()
            .unwrap();
        assert!(status.success(), "strace: {status}");
        let report = fs::read_to_string(report).unwrap();
        let calls = report.lines().filter(|line| line.contains("sync("));
        calls.count() as f64
    };
    // without those of opening
    (count(600) - count(100)) / 500.0
}

fn syncs(engine: Engine, dir: &Path) {
    let appends: usize = std::env::var("APPENDS").unwrap().parse().unwrap();
    let mut queue = engine.open(dir);
    let mut random = Random::new(SIZES[0]);
    for _ in 0..appends {
        let record = random.group(1);
        queue.append(&slices(&record));
    }
    // what it would do in closing is not counted
    std::mem::forget(queue);
}

/// Each process opens what the last one left when it was killed, from a cold
/// cache.
fn a_million(dir: &Path, which: usize) {
    let engine = Engine::ALL[which];
    let dir = dir.join(format!("million-{which}"));
    eprintln!("  a million records: {}", engine.name());
    start("fill", which, &dir, "filled");
    let mut figures = Vec::new();
    for _ in 0..3 {
        for file in files(&dir) {
            let file = File::open(file).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        let said = start("open", which, &dir, "opened");
        figures.push(
            said.split(' ')
                .map(|number| number.parse().unwrap())
                .collect::<Vec<f64>>(),
        );
    }
    let column = |n: usize| median(&figures.iter().map(|row| row[n]).collect::<Vec<_>>());
    for (n, (what, unit)) in [
        ("open 1 M records after kill -9, cold", "ms"),
        ("read from the disk to open 1 M records", "MiB"),
        ("memory with 1 M records, PSS", "MiB"),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{what}: {}", engine.name());
        print(&Row::alone(&name, unit, None, &[column(n)]));
    }
    fs::remove_dir_all(dir).unwrap();
}

fn fill(engine: Engine, dir: &Path) {
    let mut queue = engine.open(dir);
    let mut random = Random::new(SIZES[0]);
    for _ in 0..1000 {
        let group = random.group(1000);
        queue.append(&slices(&group));
    }
    println!("filled");
    Role::wait_for_the_end();
}

fn open(engine: Engine, dir: &Path) {
    let read = counter("read_bytes: ");
    let start = Instant::now();
    let mut queue = engine.open(dir);
    let took = start.elapsed().as_secs_f64() * 1e3;
    let read = (counter("read_bytes: ") - read) as f64 / 1024.0 / 1024.0;
    queue.drain(GROUP, SIZES[0]);
    let group = Random::new(SIZES[0]).group(GROUP);
    queue.append(&slices(&group));
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = pss.unwrap().trim().strip_suffix(" kB").unwrap();
    println!(
        "opened {took} {read} {}",
        kib.parse::<f64>().unwrap() / 1024.0
    );
    Role::wait_for_the_end();
}

fn start(role: &str, which: usize, dir: &Path, word: &str) -> String {
    let which = which.to_string();
    let arguments = [role.as_ref(), which.as_ref(), dir.as_os_str()];
    Role::start(arguments).unwrap().say(word).unwrap()
}

fn print(row: &Row) {
    row.print().unwrap();
}

/// Bytes that this process has sent to the disk, in whole pages.
fn written() -> u64 {
    counter("write_bytes: ")
}

fn counter(key: &str) -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().parse().unwrap()
}

/// Records that nobody can compress.
struct Random {
    random: fastrand::Rng,
    size: usize,
}

impl Random {
    fn new(size: usize) -> Self {
        Self {
            random: fastrand::Rng::with_seed(1),
            size,
        }
    }

    fn group(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut record = || {
            let mut record = vec![0; self.size];
            self.random.fill(&mut record);
            record
        };
        (0..count).map(|_| record()).collect()
    }
}

fn slices(group: &[Vec<u8>]) -> Vec<&[u8]> {
    group.iter().map(Vec::as_slice).collect()
}

/// Bytes of a record.
const SIZES: [usize; 2] = [600, 2048];
/// Records in a group.
const GROUP: usize = 64;
const ROUNDS: usize = 5;
/// Turns in a round; every number of calls is a multiple of it.
const TURNS: usize = 25;
