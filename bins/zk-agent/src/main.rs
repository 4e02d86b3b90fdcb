//! `zk-agent`: runs until it is told to stop.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr)]

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use jiff::SignedDuration;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zk_agent::{Agent, Config, Error, Metrics, Watch, loopback};

/// Reads sensors, seals each reading with the device's key, keeps it on disk
/// and publishes it, oldest first.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  zk-agent --config /etc/zk-agent/agent.toml
  zk-agent --config devices/pi-01/agent.toml --hsm soft:/home/me/dev-key.pem

Flags go before environment variables, these before the configuration file.
SIGTERM and SIGINT seal what was read, publish, both for at most 10 s, and end.

Exit status: 0 stopped as told, 1 failed, 2 wrong usage or configuration."
)]
struct Arguments {
    /// The configuration file, as zk-setup writes it.
    #[arg(
        long,
        env = "ZK_AGENT_CONFIG",
        default_value = "/etc/zk-agent/agent.toml"
    )]
    config: PathBuf,
    /// The device's key, in place of device.hsm.
    #[arg(long, env = "ZK_AGENT_HSM")]
    hsm: Option<String>,
    /// Where records go, in place of target.endpoint.
    #[arg(long, env = "ZK_AGENT_ENDPOINT", value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Where the kernel shows its buses, in place of sensors.root.
    #[arg(long, env = "ZK_AGENT_SENSORS_ROOT", value_name = "DIR")]
    sensors_root: Option<PathBuf>,
    /// From one sweep to the next, in place of sensors.interval.
    #[arg(long, env = "ZK_AGENT_INTERVAL", value_name = "DURATION")]
    interval: Option<SignedDuration>,
    /// Where records wait, in place of spool.dir.
    #[arg(long, env = "ZK_AGENT_SPOOL", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Where metrics and health are served, in place of metrics.listen.
    #[arg(long, env = "ZK_AGENT_METRICS", value_name = "ADDRESS:PORT", value_parser = loopback)]
    metrics: Option<SocketAddr>,
    /// How log lines are written to stderr; RUST_LOG chooses which.
    #[arg(long, env = "ZK_AGENT_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(arguments.log_format);
    match run(arguments) {
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

fn run(arguments: Arguments) -> Result<(), Error> {
    let mut config = Config::read(&arguments.config)?;
    config.device.hsm = arguments.hsm.unwrap_or(config.device.hsm);
    config.target.endpoint = arguments.endpoint.unwrap_or(config.target.endpoint);
    config.sensors.root = arguments.sensors_root.unwrap_or(config.sensors.root);
    config.sensors.interval = arguments.interval.unwrap_or(config.sensors.interval);
    config.spool.dir = arguments.spool.unwrap_or(config.spool.dir);
    config.metrics.listen = arguments.metrics.or(config.metrics.listen);

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

fn start_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

/// How long it goes on publishing after it was told to stop.
const GRACE: Duration = Duration::from_secs(10);
