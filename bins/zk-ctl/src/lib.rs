//! The tool for a person on the device: publish by hand, use the key, look into
//! a spool, read the sensors, and find out what is wrong.
//!
//! The program `zk-ctl` prints what [`run`] returns; `docs/ctl.md` describes its
//! commands. Whatever the agent does as well is done by [`zk_agent`]'s own code
//! with the agent's own configuration, so that what works here works there.
#![forbid(unsafe_code)]

mod agent;
mod arguments;
mod device;
mod doctor;
mod error;
mod files;
mod forge;
mod hsm;
mod outcome;
mod publish;
mod sensors;
mod server;
mod spool;

pub use arguments::Arguments;
use arguments::Command;
pub use error::Error;
pub use outcome::{Outcome, Output};

/// Does what the command line says.
///
/// # Errors
/// What kept it from being done; [`Error::exit_code`] goes with it.
pub fn run(arguments: &Arguments) -> Result<Outcome, Error> {
    let common = &arguments.common;
    match &arguments.command {
        Command::Publish(publish) => match publish.forge {
            None => publish::publish(common, publish),
            Some(forgery) => forge::forge(common, publish, forgery),
        },
        Command::Hsm(command) => hsm::run(common, command, arguments.json),
        Command::Spool(command) => spool::run(common, command),
        Command::Sensors(sensors) => sensors::run(common, sensors, arguments.json),
        Command::Doctor(doctor) => doctor::doctor(common, doctor),
    }
}
