//! `zk-agent`: runs until it is told to stop.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;
use zk_agent::arguments::Arguments;
use zk_agent::{Agent, Config, Error, Log, LogFormat, Metrics, Watch, template};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.config_template {
        template().map(|text| print!("{text}"))
    } else {
        run(&arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut said = error.to_string();
            eprintln!("zk-agent: {said}");
            let mut cure = None;
            let mut cause = error.source();
            while let Some(error) = cause {
                // Many errors tell their cause themselves.
                if !said.contains(&error.to_string()) {
                    said = error.to_string();
                    eprintln!("  because: {said}");
                }
                cure = io_error(error).and_then(cure_of).or(cure);
                cause = error.source();
            }
            if let Some(cure) = cure {
                eprintln!("  next: {cure}");
            }
            let usage = matches!(
                error,
                Error::Config { .. }
                    | Error::HsmUri(_)
                    | Error::OtherDevice { .. }
                    | Error::OtherSpool { .. }
                    | Error::Pem { .. }
                    | Error::Setting(_)
                    | Error::Target(_)
            );
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let shared = || error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref);
    error.downcast_ref().or_else(shared)
}

/// What to do about a file that can't be used.
fn cure_of(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("check the path; a relative one begins where you are"),
        io::ErrorKind::PermissionDenied => {
            Some("run this as the file's owner, or have the owner permit it")
        }
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            Some("check the path: a file is needed where a directory is, or the other way round")
        }
        io::ErrorKind::AlreadyExists => Some("choose another path, or move away what is there"),
        io::ErrorKind::InvalidData => Some("this is no text file; check the path"),
        io::ErrorKind::StorageFull => Some("the disk is full: free some space, and try again"),
        _ => None,
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let config = arguments.overrides.over(Config::read(&arguments.config)?);
    start_logging(&config.log)?;
    let listener = config.metrics.listen.map(listen).transpose()?;

    // A signal, or the agent that cannot go on: whichever comes first.
    let (end, ended) = channel::<()>();
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::Thread)?;
    let signalled = end.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // Nobody listens once the agent is stopping.
            let _ = signalled.send(());
        }
    });
    let agent = Agent::start(&config, move || {
        let _ = end.send(());
    })?;
    let metrics = match listener {
        Some(listener) => Some(Metrics::serve(listener, agent.watch())?),
        None => None,
    };
    let watchdog = feed_watchdog(agent.watch())?;
    notify(NotifyState::Ready);
    // An error would mean that no sender is left; the signals' thread keeps one.
    let _ = ended.recv();
    notify(NotifyState::Stopping);
    drop(metrics);
    let stopped = agent.stop(GRACE);
    drop(watchdog);
    let status = stopped?;
    tracing::info!(
        sampled = status.sampled,
        sealed = status.sealed,
        waiting = status.spool.records,
        "stopped; what waits goes out after the next start"
    );
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving /metrics and /healthz");
        Ok(listener)
    });
    bound.map_err(|source| Error::Listen { address, source })
}

/// Tells systemd; without it there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// Tells systemd that all is well, if it wants to hear that, for as long as all
/// threads get on. Otherwise tells it which one does not; when it has heard nothing
/// else for `WatchdogSec` it ends this process and starts another.
fn feed_watchdog(watch: Watch) -> Result<Option<Watchdog>, Error> {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return Ok(None);
    };
    let (stop, stopped) = channel::<()>();
    let feed = move || {
        let mut hungry = false;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(limit / 4) {
            let stuck = watch.stuck(limit);
            let Some((thread, at_it)) = stuck.first() else {
                if hungry {
                    notify(NotifyState::Status("all threads get on again"));
                }
                hungry = false;
                notify(NotifyState::Watchdog);
                continue;
            };
            if !hungry {
                tracing::error!(thread, ?at_it, "a thread is stuck; systemd is told no more");
            }
            hungry = true;
            let seconds = at_it.as_secs();
            let status = format!("the {thread} has been at one thing for {seconds} s");
            notify(NotifyState::Status(&status));
        }
    };
    let thread = std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(feed)
        .map_err(Error::Thread)?;
    Ok(Some(Watchdog {
        stop: Some(stop),
        thread: Some(thread),
    }))
}

/// Feeds until it is dropped.
struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The spool is open as long as it looks on.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watchdog's thread panicked: this is a defect, please report it");
        }
    }
}

fn start_logging(log: &Log) -> Result<(), Error> {
    let wrong = |error: &dyn std::error::Error| Error::Setting(format!("log.filter: {error}"));
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| wrong(&error))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// How long it goes on publishing after it was told to stop.
const GRACE: Duration = Duration::from_secs(10);
