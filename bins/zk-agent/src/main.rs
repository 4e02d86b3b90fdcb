//! `zk-agent`: runs until it is told to stop.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::io::{self, IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::geteuid;
use sd_notify::NotifyState;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_agent::arguments::Arguments;
use zk_agent::{
    Agent, Config, Error, Finding, Log, LogFormat, Metrics, Watch, check, template, with_causes,
};
use zk_cli::{tell, tell_error};

mod repeats;

use repeats::{ON_REQUEST, Repeats};

fn main() -> ExitCode {
    let arguments = Arguments::of_this_process().unwrap_or_else(|error| error.exit());
    let outcome = if arguments.config_template {
        template()
            .map_err(Failure::from)
            .and_then(|text| print(&text, 0))
    } else if arguments.check_config {
        check_config(&arguments)
    } else {
        run(&arguments).map(|()| ExitCode::SUCCESS)
    };
    outcome.unwrap_or_else(|failure| failure.tell())
}

/// Why the program ends.
struct Failure {
    error: Error,
    /// The key that it is about, and where it stands.
    place: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, place: None }
    }
}

impl Failure {
    /// An error with this configuration.
    fn with(arguments: &Arguments, config: &Config, error: Error) -> Self {
        let place = error.key(config).map(|key| {
            let place = arguments.place(key);
            // Many errors begin with the key themselves.
            match error.to_string().starts_with(key) {
                true => place.to_string(),
                false => format!("{place}: {key}"),
            }
        });
        Self { error, place }
    }

    /// In one line, for the log.
    fn to_line(&self) -> String {
        let said = with_causes(&self.error);
        let place = self.place.as_ref();
        place.map_or_else(|| said.clone(), |place| format!("{place}: {said}"))
    }

    fn tell(&self) -> ExitCode {
        let Self { error, place } = self;
        let who = place.as_ref();
        let who = who.map_or_else(
            || "zk-agent".to_owned(),
            |place| format!("zk-agent: {place}"),
        );
        tell_error(&who, error);
        if matches!(error, Error::Config { .. }) {
            tell("  next: zk-agent --config-template prints all keys, with what each is for");
        }
        ExitCode::from(error.exit_code())
    }
}

/// To standard output; nobody there, such as a pager that has ended, is no failure.
fn print(text: &str, status: u8) -> Result<ExitCode, Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            let path = "standard output".into();
            Err(Error::File { path, source }.into())
        }
        _ => Ok(ExitCode::from(status)),
    }
}

/// Says whether the agent would start. Whatever keeps it from that is told, not only
/// the first.
fn check_config(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let file = arguments.config.display();
    if geteuid().is_root() {
        eprintln!(
            "zk-agent: looked at as root, who may see and write more than the service: sudo -u \
             zk-agent zk-agent --check-config"
        );
    }
    let config = match Config::read(&arguments.config) {
        Ok(config) => arguments.overrides.over(config),
        Err(error) if arguments.json => {
            let line = match &error {
                Error::Config { line, .. } => *line,
                _ => None,
            };
            let finding = json!({
                "key": null, "line": line, "by": null, "starts": false,
                "what": with_causes(&error),
                "cure": "zk-agent --config-template prints all keys, with what each is for",
            });
            let found = json!({ "starts": false, "findings": [finding] });
            return print(&format!("{found}\n"), 2);
        }
        Err(error) => return Err(error.into()),
    };
    let findings = check(arguments, &config);
    let starts = findings.iter().all(|finding| finding.starts);
    let status = if starts { 0 } else { 2 };
    if arguments.json {
        let findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
        let found = json!({ "starts": starts, "findings": findings });
        return print(&format!("{found}\n"), status);
    }
    let mut text = String::new();
    for Finding {
        key,
        place,
        starts,
        what,
        cure,
        ..
    } in &findings
    {
        let kind = if *starts { "warning: " } else { "" };
        text += &format!("{place}: {kind}{key}: {what}\n  next: {cure}\n");
    }
    if starts {
        text += &format!("{file}: the agent starts with it\n");
    }
    print(&text, status)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let read = || Config::read(&arguments.config).map(|file| arguments.overrides.over(file));
    let config = read()?;
    let with = |error| Failure::with(arguments, &config, error);
    let set_filter = start_logging(&config.log).map_err(with)?;
    let listener = config.metrics.listen.map(listen).transpose();
    let listener = listener.map_err(with)?;

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
    })
    .map_err(with)?;
    let metrics = match listener {
        Some(listener) => Some(Metrics::serve(listener, agent.watch())?),
        None => None,
    };
    let watchdog = feed_watchdog(agent.watch())?;
    notify(NotifyState::Ready);
    // An error would mean that no sender is left; the signals' thread keeps one.
    while let Ok(Told::Reload) = told.recv() {
        notify_all(&[NotifyState::Reloading, now()]);
        let reloaded = read().map_err(Failure::from).and_then(|config| {
            let outcome = reload(&agent, &config, &set_filter);
            outcome.map_err(|error| Failure::with(arguments, &config, error))
        });
        match reloaded {
            Ok(()) => tracing::info!("the configuration holds as it is now"),
            Err(failure) => {
                let error = failure.to_line();
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
    let filter = config.log.targets()?;
    for key in agent.reload(config)? {
        tracing::warn!(
            target: ON_REQUEST,
            key,
            "this changes when the agent is started anew, and not before"
        );
    }
    set_filter(filter);
    Ok(())
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
    let (filter, handle) = tracing_subscriber::reload::Layer::new(log.targets()?);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    Ok(move |filter| drop(handle.reload(filter)))
}

/// How long it goes on publishing after it was told to stop.
const GRACE: Duration = Duration::from_secs(10);
