//! `zk-agent`: runs until it is told to stop.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use sd_notify::NotifyState;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_agent::arguments::Arguments;
use zk_agent::{Agent, Config, Error, Finding, Log, LogFormat, Metrics, Watch, check, template};

mod repeats;

use repeats::{ON_REQUEST, Repeats};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.config_template {
        template().map(|text| {
            print!("{text}");
            ExitCode::SUCCESS
        })
    } else if arguments.check_config {
        check_config(&arguments)
    } else {
        run(&arguments).map(|()| ExitCode::SUCCESS)
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            zk_cli::tell_error("zk-agent", &error);
            let no_config = matches!(&error, Error::File { path, .. } if *path == arguments.config);
            let usage = no_config
                || matches!(
                    error,
                    Error::Config { .. }
                        | Error::Group { .. }
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

/// Says whether the agent would start. Whatever keeps it from that is told, not only
/// the first.
fn check_config(arguments: &Arguments) -> Result<ExitCode, Error> {
    let file = arguments.config.display();
    let config = match Config::read(&arguments.config) {
        Ok(config) => arguments.overrides.over(config),
        Err(error) if arguments.json => {
            let what = error.to_string();
            let finding = json!({
                "key": null, "line": null, "starts": false, "what": what, "cure": null,
            });
            println!("{}", json!({ "starts": false, "findings": [finding] }));
            return Ok(ExitCode::from(2));
        }
        Err(error) => return Err(error),
    };
    let findings = check(&arguments.config, &config);
    let starts = findings.iter().all(|finding| finding.starts);
    if arguments.json {
        let findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
        println!("{}", json!({ "starts": starts, "findings": findings }));
    } else {
        for finding in &findings {
            let line = finding.line.map(|line| format!(":{line}"));
            let line = line.unwrap_or_default();
            let kind = if finding.starts { "warning: " } else { "" };
            println!("{file}{line}: {kind}{}: {}", finding.key, finding.what);
            println!("  next: {}", finding.cure);
        }
        if starts {
            println!("{file}: the agent starts with it");
        }
    }
    Ok(ExitCode::from(if starts { 0 } else { 2 }))
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let read = || Config::read(&arguments.config).map(|file| arguments.overrides.over(file));
    let config = read()?;
    let set_filter = start_logging(&config.log)?;
    let listener = config.metrics.listen.map(listen).transpose()?;

    // A signal, or the agent that cannot go on: whichever comes first.
    let (tell, told) = channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::Thread)?;
    let signalled = tell.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let told = match signal {
                SIGHUP => Told::Reload,
                _ => Told::End,
            };
            // Nobody listens once the agent is stopping.
            let _ = signalled.send(told);
        }
    });
    let agent = Agent::start(&config, move || {
        let _ = tell.send(Told::End);
    })?;
    let metrics = match listener {
        Some(listener) => Some(Metrics::serve(listener, agent.watch())?),
        None => None,
    };
    let watchdog = feed_watchdog(agent.watch())?;
    notify(NotifyState::Ready);
    // An error would mean that no sender is left; the signals' thread keeps one.
    while let Ok(Told::Reload) = told.recv() {
        notify_all(&[NotifyState::Reloading, now()]);
        match read().and_then(|config| reload(&agent, &config, &set_filter)) {
            Ok(()) => tracing::info!("the configuration holds as it is now"),
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!(target: ON_REQUEST, error, "going on with the configuration as it was");
            }
        }
        notify(NotifyState::Ready);
    }
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

/// What the program is told while it runs.
enum Told {
    End,
    Reload,
}

/// Takes up what can be changed in a running agent, and says what can't.
fn reload(agent: &Agent, config: &Config, set_filter: &impl Fn(Targets)) -> Result<(), Error> {
    let filter = log_filter(&config.log)?;
    for key in agent.reload(config)? {
        tracing::warn!(
            key,
            "this changes when the agent is started anew, and not before"
        );
    }
    set_filter(filter);
    Ok(())
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Many errors tell their cause themselves.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// What systemd, since 253, wants to know of a reload besides that there is one.
fn now() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0))
}

/// Tells systemd; without it there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn notify_all(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
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

/// Returns what changes the filter.
fn start_logging(log: &Log) -> Result<impl Fn(Targets) + use<>, Error> {
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines
            .map_event_format(|format| Repeats::new(format, false))
            .boxed(),
        LogFormat::Json => lines
            .json()
            .map_event_format(|format| Repeats::new(format, true))
            .boxed(),
    };
    let (filter, handle) = tracing_subscriber::reload::Layer::new(log_filter(log)?);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    Ok(move |filter| drop(handle.reload(filter)))
}

fn log_filter(log: &Log) -> Result<Targets, Error> {
    zk_cli::log_filter(&log.filter)
        .map_err(|error| Error::Setting(format!("log.filter is {:?}: {error}", log.filter)))
}

/// How long it goes on publishing after it was told to stop.
const GRACE: Duration = Duration::from_secs(10);
