//! A spool drained to a target of one's own, without zk-publish: here lines over
//! TCP, which the receiver answers with `ok`. Shows what keeps everything from
//! being lost: peek, deliver, wait for the receiver's word, and only then ack.
//!
//! ```sh
//! cargo run -p zk-examples --bin custom_publisher
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use zk_spool::{Options, Record, Spool};

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || receive(&listener));

    // One spool, two sides: append on one thread, drain on another.
    let spool = Arc::new(Spool::open(directory.path(), Options::default())?);
    let device = thread::spawn({
        let spool = Arc::clone(&spool);
        move || append(&spool)
    });
    // Asked in this order, so that no record can slip in between.
    while !device.is_finished() || spool.stats()?.records > 0 {
        publish_next(&spool, address)?;
    }
    let ended = device.join();
    ended.map_err(|_| anyhow!("the device panicked"))??;
    for loss in spool.losses()? {
        // Named until confirmed. A device seals it into a record of its own
        // before it calls `confirm`, so that the owner learns of it.
        println!("not delivered: {}, {:?}", loss.first, loss.reason);
    }
    Ok(())
}

/// Delivers the oldest record, if there is one within a short while.
fn publish_next(spool: &Spool, address: SocketAddr) -> Result<()> {
    spool.wait(Duration::from_millis(100))?;
    // Only durable records, oldest first, and they stay where they are.
    let Some(record) = spool.peek(1, 4096)?.pop() else {
        return Ok(());
    };
    match deliver(&record, address) {
        // After delivery. The other way round, a crash between the two would
        // lose the record; this way it is sent once more.
        Ok(Answer::Taken) => spool.ack(record.position())?,
        // For good: it goes to `rejected/`, and blocks nothing behind it.
        Ok(Answer::Refused) => spool.reject(record.position())?,
        // Not known: perhaps it arrived. Keep it and try again; a service does
        // so after a pause that grows.
        Err(error) => {
            println!("publisher: {} again, because {error}", record.sequence());
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn append(spool: &Spool) -> Result<()> {
    let stream = spool.stream();
    for celsius in ["21.4", "21.5", "21.6", "nonsense", "21.7"] {
        spool.append_with(|sequence| {
            Ok::<_, Infallible>(format!("{stream} {sequence} {celsius}").into_bytes())
        })?;
    }
    Ok(())
}

enum Answer {
    Taken,
    Refused,
}

fn deliver(record: &Record, address: SocketAddr) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    // Nothing may wait for ever on a link that went away.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&[record.bytes(), b"\n"].concat())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.as_str() {
        "ok\n" => Ok(Answer::Taken),
        "no\n" => Ok(Answer::Refused),
        _ => Err(io::Error::other("there was no answer")),
    }
}

/// Stores each record once, by its stream and number. The second connection is
/// lost after the record is stored and before the answer.
fn receive(listener: &TcpListener) -> io::Result<()> {
    let mut stored = BTreeSet::new();
    for (connection, stream) in listener.incoming().enumerate() {
        let mut stream = BufReader::new(stream?);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let (key, celsius) = line.trim_end().rsplit_once(' ').unwrap_or_default();
        let answer = if celsius.parse::<f64>().is_err() {
            println!("receiver: {celsius} refused");
            "no\n"
        } else {
            // One that is known is answered as the first time: it is stored.
            let new = stored.insert(key.to_owned());
            let what = if new { "stored" } else { "stored before" };
            println!("receiver: {celsius} {what}");
            "ok\n"
        };
        if connection != 1 {
            stream.get_mut().write_all(answer.as_bytes())?;
        }
    }
    Ok(())
}
