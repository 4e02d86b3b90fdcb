//! The command line, for the program and for its manual.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use tracing_subscriber::filter::Targets;
use zk_store::StoreUri;

use crate::loopback;

/// Takes telemetry over mutual TLS the way AWS IoT does, verifies it, and
/// stores it.
#[derive(Debug, Parser)]
#[command(name = "zk-gateway", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The configuration file
    #[arg(
        long,
        env = "ZK_GATEWAY_CONFIG",
        default_value = "/etc/zk-gateway/gateway.toml"
    )]
    pub config: PathBuf,

    /// Where devices connect to, in place of what the file says
    #[arg(long, env = "ZK_GATEWAY_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Where metrics and health are served, in place of what the file says
    #[arg(long, env = "ZK_GATEWAY_METRICS", value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub metrics: Option<SocketAddr>,

    /// Where records go, in place of what the file says
    #[arg(
        long,
        env = "ZK_GATEWAY_STORE",
        value_name = "file:PATH|dynamodb:REGION"
    )]
    pub store: Option<StoreUri>,

    /// What the names of the store's tables begin with, in place of what the file says
    #[arg(long, env = "ZK_GATEWAY_PREFIX", value_name = "PREFIX")]
    pub prefix: Option<String>,

    /// What to log: a level, or a filter such as info,zk_gateway=debug
    #[arg(long, env = "ZK_GATEWAY_LOG", default_value = "info", value_parser = zk_cli::log_filter)]
    pub log: Targets,

    /// How to log, always to standard error
    #[arg(long, env = "ZK_GATEWAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Says whether configuration, certificates, key and store are right, and ends
    #[arg(long)]
    pub check: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object in a line.
    Json,
}

const AFTER_HELP: &str = "\
Examples:
  zk-gateway --config /etc/zk-gateway/gateway.toml
  zk-gateway --config gateway.toml --check
  zk-gateway --config gateway.toml --listen 127.0.0.1:0 --log debug
  curl --cacert gateway-ca.crt.pem --cert pi-01.crt.pem --key pi-01.key.pem \\
       --data @message.json 'https://localhost:8443/topics/Zymkey%2Fpi-01?qos=1'

Settings of the command line go before the environment, that before the file.

Signals: TERM and INT stop it once the requests under way are answered; HUP
reads certificates and key anew.

Exit codes: 0 stopped as told, 2 arguments, 3 configuration, 4 certificates or
key, 5 address, 6 store, 1 anything else. The middle ones don't mend themselves
by a restart.";
