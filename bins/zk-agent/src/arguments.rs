//! The command line, for the program and for its manual.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser};
use jiff::SignedDuration;
use zk_envelope::DeviceId;
use zk_sensors::Offset;

use crate::config::{self, Config, Engine, Full, LogFormat, line_of, loopback};
use crate::error::in_file;

/// Reads sensors, seals each reading with the device's key, keeps it on disk
/// and publishes it, oldest first.
#[derive(Debug, Parser)]
#[command(name = "zk-agent", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The configuration file, as zk-setup writes it.
    #[arg(
        long,
        env = "ZK_AGENT_CONFIG",
        default_value = "/etc/zk-agent/agent.toml"
    )]
    pub config: PathBuf,
    /// Says whether the agent would start here, and what is wrong, and ends.
    #[arg(long, conflicts_with = "config_template")]
    pub check_config: bool,
    /// With --check-config: prints one JSON object.
    #[arg(long, requires = "check_config")]
    pub json: bool,
    /// Prints a complete configuration file with comments, and ends.
    #[arg(long)]
    pub config_template: bool,
    /// What goes before the file.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// Settings from the command line or the environment, for each key of the file.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "In place of what the file says")]
pub struct Overrides {
    /// The device's name.
    #[arg(
        id = "device.id",
        long = "device",
        env = "ZK_AGENT_DEVICE",
        value_name = "ID"
    )]
    pub device: Option<DeviceId>,
    /// The device's key.
    #[arg(
        id = "device.hsm",
        long = "hsm",
        env = "ZK_AGENT_HSM",
        value_name = "URI"
    )]
    pub hsm: Option<String>,
    /// Its certificate chain.
    #[arg(
        id = "device.certificate",
        long = "certificate",
        env = "ZK_AGENT_CERTIFICATE",
        value_name = "FILE"
    )]
    pub certificate: Option<PathBuf>,
    /// Where records go.
    #[arg(
        id = "target.endpoint",
        long = "endpoint",
        env = "ZK_AGENT_ENDPOINT",
        value_name = "HOST:PORT"
    )]
    pub endpoint: Option<String>,
    /// Who signs the endpoint's certificate.
    #[arg(
        id = "target.roots",
        long = "roots",
        env = "ZK_AGENT_ROOTS",
        value_name = "FILE"
    )]
    pub roots: Option<PathBuf>,
    /// An owner's public key; may be given again, or several with commas.
    #[arg(
        id = "owners.files",
        long = "owner",
        env = "ZK_AGENT_OWNERS",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub owners: Vec<PathBuf>,
    /// From one sweep over all sensors to the next.
    #[arg(
        id = "sensors.interval",
        long = "interval",
        env = "ZK_AGENT_INTERVAL",
        value_name = "DURATION"
    )]
    pub interval: Option<SignedDuration>,
    /// Where the kernel shows its buses.
    #[arg(
        id = "sensors.root",
        long = "sensors-root",
        env = "ZK_AGENT_SENSORS_ROOT",
        value_name = "DIR"
    )]
    pub sensors_root: Option<PathBuf>,
    /// Degrees that are added to what a sensor measures, in place of all that the file
    /// has; may be given again, or several with commas.
    #[arg(
        id = "sensors.offsets",
        long = "offset",
        env = "ZK_AGENT_OFFSETS",
        value_name = "SENSOR=CELSIUS",
        value_delimiter = ','
    )]
    pub offsets: Vec<Offset>,
    /// Where records wait.
    #[arg(
        id = "spool.dir",
        long = "spool",
        env = "ZK_AGENT_SPOOL",
        value_name = "DIR"
    )]
    pub spool: Option<PathBuf>,
    /// How they are stored.
    #[arg(
        id = "spool.engine",
        long = "spool-engine",
        env = "ZK_AGENT_SPOOL_ENGINE",
        value_name = "ENGINE"
    )]
    pub spool_engine: Option<Engine>,
    /// The most that may wait.
    #[arg(
        id = "spool.cap",
        long = "spool-cap",
        env = "ZK_AGENT_SPOOL_CAP",
        value_name = "SIZE"
    )]
    pub spool_cap: Option<ByteSize>,
    /// What happens then.
    #[arg(
        id = "spool.full",
        long = "spool-full",
        env = "ZK_AGENT_SPOOL_FULL",
        value_name = "POLICY"
    )]
    pub spool_full: Option<Full>,
    /// When a record is safe from a power cut: each, or within a time such as 1s.
    #[arg(
        id = "spool.sync",
        long = "spool-sync",
        env = "ZK_AGENT_SPOOL_SYNC",
        value_name = "each|DURATION",
        value_parser = sync
    )]
    pub spool_sync: Option<config::Sync>,
    /// From one heartbeat record to the next.
    #[arg(
        id = "heartbeat.interval",
        long = "heartbeat",
        env = "ZK_AGENT_HEARTBEAT",
        value_name = "DURATION"
    )]
    pub heartbeat: Option<SignedDuration>,
    /// Whether a broken perimeter is sealed as an event.
    #[arg(
        id = "events.perimeter",
        long = "events-perimeter",
        env = "ZK_AGENT_EVENTS_PERIMETER",
        value_name = "true|false"
    )]
    pub events_perimeter: Option<bool>,
    /// Below how many volts its battery is one.
    #[arg(
        id = "events.battery",
        long = "events-battery",
        env = "ZK_AGENT_EVENTS_BATTERY",
        value_name = "VOLTS"
    )]
    pub events_battery: Option<f32>,
    /// Whether it is one that the module moves, or signs again.
    #[arg(
        id = "events.module",
        long = "events-module",
        env = "ZK_AGENT_EVENTS_MODULE",
        value_name = "true|false"
    )]
    pub events_module: Option<bool>,
    /// How often the module is asked for events.
    #[arg(
        id = "events.interval",
        long = "events-interval",
        env = "ZK_AGENT_EVENTS_INTERVAL",
        value_name = "DURATION"
    )]
    pub events_interval: Option<SignedDuration>,
    /// Where metrics and health are served.
    #[arg(
        id = "metrics.listen",
        long = "metrics",
        env = "ZK_AGENT_METRICS",
        value_name = "ADDRESS:PORT",
        value_parser = loopback
    )]
    pub metrics: Option<SocketAddr>,
    /// The socket for data of other programs.
    #[arg(
        id = "socket.listen",
        long = "socket",
        env = "ZK_AGENT_SOCKET",
        value_name = "PATH"
    )]
    pub socket: Option<PathBuf>,
    /// The group whose members may use it.
    #[arg(
        id = "socket.group",
        long = "socket-group",
        env = "ZK_AGENT_SOCKET_GROUP",
        value_name = "GROUP"
    )]
    pub socket_group: Option<String>,
    /// What to log, always to standard error: a level, or a filter such as
    /// info,zk_publish=debug.
    #[arg(
        id = "log.filter",
        long = "log",
        env = "ZK_AGENT_LOG",
        value_name = "FILTER"
    )]
    pub log: Option<String>,
    /// How to log.
    #[arg(
        id = "log.format",
        long = "log-format",
        env = "ZK_AGENT_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// The keys that are given here, each with its flag or variable.
    #[arg(skip)]
    given: BTreeMap<String, String>,
}

/// Where the value of a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In the file.
    File {
        /// Which.
        path: PathBuf,
        /// Where in it; `None` if the key does not stand there.
        line: Option<usize>,
    },
    /// It is given by a flag or a variable, of this name.
    Given(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => f.write_str(&in_file(path, *line)),
            Self::Given(by) => f.write_str(by),
        }
    }
}

impl Arguments {
    /// The arguments of this process.
    ///
    /// # Errors
    /// What is wrong with them, and with which flag or variable; or that help was asked
    /// for: let it end the process.
    pub fn of_this_process() -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        let matches = matches.map_err(|error| name_variable(error, &command))?;
        let mut arguments = Self::from_arg_matches(&matches)?;
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let by = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => {
                    argument.get_long().map(|flag| format!("--{flag}"))
                }
                Some(ValueSource::EnvVariable) => variable(argument),
                _ => None,
            };
            if let Some(by) = by {
                arguments.overrides.given.insert(id.to_owned(), by);
            }
        }
        Ok(arguments)
    }

    /// Where the value of a key such as `device.id` stands.
    #[must_use]
    pub fn place(&self, key: &str) -> Place {
        if let Some(by) = self.overrides.given.get(key) {
            return Place::Given(by.clone());
        }
        if key == "log.filter" && common_filter().is_some() {
            return Place::Given(COMMON_FILTER.to_owned());
        }
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        Place::File {
            path: self.config.clone(),
            line: line_of(&text, key),
        }
    }
}

fn variable(argument: &Arg) -> Option<String> {
    Some(argument.get_env()?.to_string_lossy().into_owned())
}

/// An error of a value speaks of its flag, also if it comes from the variable.
fn name_variable(mut error: clap::Error, command: &Command) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let argument = command
        .get_arguments()
        .find(|argument| argument.to_string() == *shown);
    let flag = argument.and_then(Arg::get_long).unwrap_or_default();
    let flag = format!("--{flag}");
    let on_command_line = std::env::args().any(|given| given.split('=').next() == Some(&flag));
    if !on_command_line && let Some(variable) = argument.and_then(variable) {
        let tip = format!("the value is that of the variable {variable}").into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

impl Overrides {
    /// What holds, given what the file says. Paths are relative to where one is.
    #[must_use]
    pub fn over(&self, file: Config) -> Config {
        fn put<T: Clone>(given: Option<&T>, held: &mut T) {
            if let Some(given) = given {
                held.clone_from(given);
            }
        }
        let mut config = file;
        put(self.device.as_ref(), &mut config.device.id);
        put(self.hsm.as_ref(), &mut config.device.hsm);
        put(self.certificate.as_ref(), &mut config.device.certificate);
        put(self.endpoint.as_ref(), &mut config.target.endpoint);
        put(self.roots.as_ref(), &mut config.target.roots);
        if !self.owners.is_empty() {
            config.owners.files.clone_from(&self.owners);
        }
        put(self.interval.as_ref(), &mut config.sensors.interval);
        put(self.sensors_root.as_ref(), &mut config.sensors.root);
        if !self.offsets.is_empty() {
            config.sensors.offsets.clone_from(&self.offsets);
        }
        put(self.spool.as_ref(), &mut config.spool.dir);
        put(self.spool_engine.as_ref(), &mut config.spool.engine);
        put(self.spool_cap.as_ref(), &mut config.spool.cap);
        put(self.spool_full.as_ref(), &mut config.spool.full);
        put(self.spool_sync.as_ref(), &mut config.spool.sync);
        put(self.heartbeat.as_ref(), &mut config.heartbeat.interval);
        put(self.events_perimeter.as_ref(), &mut config.events.perimeter);
        config.events.battery = self.events_battery.or(config.events.battery);
        put(self.events_module.as_ref(), &mut config.events.module);
        put(self.events_interval.as_ref(), &mut config.events.interval);
        config.metrics.listen = self.metrics.or(config.metrics.listen);
        config.socket.listen = self.socket.clone().or(config.socket.listen);
        config.socket.group = self.socket_group.clone().or(config.socket.group);
        // what other programs of this system are told, too
        let common = common_filter();
        put(
            self.log.as_ref().or(common.as_ref()),
            &mut config.log.filter,
        );
        put(self.log_format.as_ref(), &mut config.log.format);
        config
    }
}

fn common_filter() -> Option<String> {
    let filter = std::env::var(COMMON_FILTER).ok();
    filter.filter(|filter| !filter.is_empty())
}

const COMMON_FILTER: &str = "RUST_LOG";

/// What goes before a key of the file, as a sentence.
pub(crate) fn over(table: &str, key: &str) -> Option<String> {
    let id = format!("{table}.{key}");
    let command = Arguments::command();
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_id() == id.as_str())?;
    let (flag, variable) = (argument.get_long()?, argument.get_env()?);
    Some(format!("Flag --{flag}, variable {}.", variable.display()))
}

fn sync(text: &str) -> Result<config::Sync, String> {
    match text.parse() {
        _ if text == "each" => Ok(config::Sync::Each),
        Ok(window) => Ok(config::Sync::Every(window)),
        Err(_) => Err("give each, or a time such as 1s".to_owned()),
    }
}

const AFTER_HELP: &str = "\
Examples:
  zk-agent --config /etc/zk-agent/agent.toml
  zk-agent --config-template > agent.toml
  zk-agent --config agent.toml --check-config
  zk-agent --config devices/pi-01/agent.toml --hsm soft:/home/me/dev-key.pem

Flags go before environment variables, these before the configuration file.

Signals: TERM and INT seal what was read, publish, both for at most 10 s, and end;
HUP reads the configuration and its certificates anew.

Exit status: 0 stopped as told, 1 failed, 2 wrong usage or configuration.";
