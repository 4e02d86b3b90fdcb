//! `zk-gateway`: arguments, logging, signals, exit code.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_gateway::arguments::{Arguments, LogFormat};
use zk_gateway::{Config, Error, Gateway, Limits, Overrides, Tls, TlsFiles, run, run_metrics};
use zk_store::{Options, Store, StoreUri};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(&arguments);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::from(failure.downcast_ref().map_or(1, Error::exit_code))
        }
    }
}

/// The story: read, open, listen, serve, stop.
async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments {
        listen,
        metrics,
        store,
        prefix,
        ..
    } = arguments;
    let config = Config::load(
        &arguments.config,
        Overrides {
            listen,
            metrics,
            store,
            prefix,
        },
    )?;
    Error::check_clock(SystemTime::now())?;
    raise_file_limit(&config.limits);
    let tls = load_tls(&config.tls)?;
    let store = open(config.store, config.prefix).await?;
    if arguments.check {
        info!("everything is right");
        return Ok(());
    }
    let listener = bind(config.listen).await?;
    let metrics = match config.metrics {
        Some(address) => Some(bind(address).await?),
        None => None,
    };

    let gateway = Gateway::new(store, tls, config.limits);
    let reload = tokio::spawn(reload_on_hup(
        gateway.clone(),
        config.tls,
        signal(SignalKind::hangup())?,
    ));
    let (stop_metrics, metrics_stopped) = oneshot::channel::<()>();
    let metrics = metrics.map(|listener| {
        let stopped = async { metrics_stopped.await.unwrap_or_default() };
        tokio::spawn(run_metrics(listener, gateway.clone(), stopped))
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell_systemd(&[NotifyState::Stopping]);
    };

    let address = listener.local_addr()?;
    info!(%address, "listening");
    tell_systemd(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("listening on {address}")),
    ]);
    run(listener, gateway.clone(), shutdown).await;

    drop(stop_metrics);
    reload.abort();
    if let Some(metrics) = metrics {
        metrics.await?;
    }
    let counters = gateway.counters();
    info!(
        stored = counters.stored,
        duplicates = counters.duplicates,
        "stopped"
    );
    Ok(())
}

async fn open(uri: StoreUri, prefix: String) -> Result<Store, Error> {
    let options = Options {
        prefix,
        ..Options::default()
    };
    let opened = async {
        let store = Store::open(&uri, options).await?;
        // shows now, rather than to the first device, whether the tables are there
        store.device("0").await?;
        Ok(store)
    };
    opened.await.map_err(|source| Error::Store {
        uri: uri.clone(),
        source,
    })
}

/// Each connection is an open file. Of those most systems let a program have
/// 1024, for the sake of old ones, and more if it asks.
fn raise_file_limit(limits: &Limits) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files cannot be raised");
    }
    let allowed = getrlimit(Resource::Nofile).current;
    let needed = limits.open_files();
    if allowed.is_some_and(|allowed| allowed < needed) {
        warn!(
            allowed,
            needed,
            "too few files may be open for the connections that limits allow; raise LimitNOFILE= in the unit, or ulimit -n"
        );
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::Listen { address, error })
}

fn load_tls(files: &TlsFiles) -> Result<Tls, Error> {
    let tls = Tls::load(files)?;
    let left = tls
        .expires()
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    if left < SOON {
        let days = left.as_secs() / (24 * 3600);
        let path = files.certificate.display();
        warn!(%path, days, "the gateway's certificate has expired or soon will; renew it, then send HUP");
    }
    Ok(tls)
}

async fn reload_on_hup(gateway: Gateway, files: TlsFiles, mut hangup: tokio::signal::unix::Signal) {
    while hangup.recv().await.is_some() {
        match load_tls(&files) {
            Ok(tls) => {
                gateway.set_tls(tls);
                info!("new connections use the certificates and key as they are now");
            }
            Err(error) => {
                error!(
                    "going on with the old certificates: {:#}",
                    anyhow::Error::from(error)
                );
            }
        }
    }
}

fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd cannot be told");
    }
}

fn log_to_stderr(arguments: &Arguments) {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match arguments.log_format {
        LogFormat::Text => lines
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(arguments.log.clone()))
        .init();
}

/// When an expiring certificate is worth a warning.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
