//! Records gather on disk while there is no link; the process is killed in the
//! middle of its work; a new one opens the same spool and delivers, in order,
//! all that was ever reported as appended.
//!
//! ```sh
//! cargo run -p zk-examples --bin spool_outage
//! ```
//!
//! A killed process is as much of a power cut as a program can do to itself.
//! The other half, a medium that forgets what was not synced, is in the crate's
//! own tests.

use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use zk_spool::{Options, Spool};

fn main() -> Result<()> {
    // This program runs itself once more, as the device that dies.
    if let Some(directory) = std::env::args_os().nth(1) {
        return append_until_killed(directory.as_ref());
    }
    let directory = tempfile::tempdir()?;
    let directory = directory.path().join("spool");

    println!("the link is down: records go to the spool");
    let mut device = Command::new(std::env::current_exe()?)
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = BufReader::new(device.stdout.take().context("its output")?).lines();
    let mut appended = 0;
    for line in told.by_ref().take(7) {
        appended = line?.parse()?;
    }
    device.kill()?;
    device.wait()?;
    println!("killed after it reported {appended} as appended");

    // Opening recovers: no repair, no deleting by hand. What was being appended
    // at that moment, and not reported, may be there or not. After a torn write
    // a new stream begins, so that no number is given out twice: see
    // `Spool::predecessor`.
    let spool = Spool::open(&directory, Options::default())?;
    let waiting = spool.stats()?;
    ensure!(waiting.records >= appended, "what append returned is there");
    println!("opened again: everything that was reported waits");

    println!("the link is back: oldest first");
    let mut delivered = 0;
    loop {
        // At most 3 records or 4096 bytes. What is not durable yet is not
        // offered, so nothing gets out that a power cut could take back.
        let records = spool.peek(3, 4096)?;
        let Some(last) = records.last() else { break };
        for record in &records {
            let text = String::from_utf8_lossy(record.bytes());
            ensure!(
                record.sequence() == delivered + 1,
                "in order, without a gap"
            );
            delivered = record.sequence();
            if delivered <= appended {
                println!("  deliver {text}");
            }
        }
        // After delivery, and only then. Everything up to here may go.
        spool.ack(last.position())?;
    }
    ensure!(spool.losses()?.is_empty(), "nothing was lost");
    println!("nothing waits, nothing was lost");

    // Dropping closes too; this tells of errors.
    spool.close()?;
    Ok(())
}

fn append_until_killed(directory: &Path) -> Result<()> {
    let spool = Spool::open(directory, Options::default())?;
    let mut stdout = io::stdout();
    loop {
        // The closure makes the record, knowing its number. It may take its
        // time (a chip signs here): others can peek and ack meanwhile. If it
        // fails, the number is not used.
        let sequence = spool.append_with(|sequence| {
            Ok::<_, Infallible>(format!("{sequence}: 21.437 degrees").into_bytes())
        })?;
        // Now it is durable, and can be reported. When nobody listens any more
        // this fails and ends the program.
        writeln!(stdout, "{sequence}")?;
    }
}
