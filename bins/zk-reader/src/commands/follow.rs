//! `zk-reader follow`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{BufWriter, StdoutLock, Write};

use zk_cli::printable;
use zk_envelope::DeviceId;
use zk_reader::{Follow, Following, Reach, Reader, Registry, Table, all_times};

use super::{Tally, alarms, known_device, now, of_device, open, outcome, output, stopped, table};
use crate::config::Settings;
use crate::{Failure, Outcome};
use zk_reader::arguments::FollowArguments;

pub(crate) async fn follow(
    settings: &Settings,
    arguments: &FollowArguments,
) -> Result<Outcome, Failure> {
    let (reader, store) = open(settings).await?;
    let registry = reader.registry().await?;
    if let Some(device) = &arguments.device {
        known_device(&store, &registry, device).await?;
    }
    let share = REMEMBER / registry.devices.len().max(1);
    let mut session = Session {
        reader: &reader,
        arguments,
        following: Following {
            from: arguments.from.map(|from| from.start(now())),
            late: arguments.late,
            remember: share.max(1000),
        },
        devices: BTreeMap::new(),
        table: table(&registry.devices),
        headed: false,
        to: output(),
        tally: Tally::default(),
        alarms: BTreeSet::new(),
        shortened: BTreeSet::new(),
        error: None,
    };
    session.take(registry, session.following);
    let stopped = stopped()?;
    tokio::select! {
        never = session.run() => match never? {},
        () = stopped => {}
    }
    session.to.flush()?;
    session.tally.report();
    Ok(outcome(
        session.tally.is_fine() && session.alarms.is_empty(),
    ))
}

struct Session<'a> {
    reader: &'a Reader,
    arguments: &'a FollowArguments,
    following: Following,
    devices: BTreeMap<DeviceId, Follow<'a>>,
    table: Table,
    headed: bool,
    to: BufWriter<StdoutLock<'static>>,
    tally: Tally,
    /// Those of the registry that were told.
    alarms: BTreeSet<String>,
    /// The devices for which it was told that less is remembered.
    shortened: BTreeSet<DeviceId>,
    /// What the store failed with last, while it fails.
    error: Option<String>,
}

impl<'a> Session<'a> {
    /// What fails before everything was seen once is what can't be done. From
    /// then on the store may come and go.
    async fn run(&mut self) -> Result<Infallible, Failure> {
        for device in self.ids() {
            self.look(&device, Reach::All).await?;
        }
        let count = self.devices.len();
        let devices = if count == 1 { "device" } else { "devices" };
        eprintln!("zk-reader: following {count} {devices}; Ctrl-C ends this");
        loop {
            for reach in [Reach::Recent; EVERYWHERE - 1]
                .into_iter()
                .chain([Reach::All])
            {
                tokio::time::sleep(self.arguments.interval).await;
                let mut failed = None;
                if reach == Reach::All {
                    match self.reader.registry().await {
                        Ok(registry) => self.take(
                            registry,
                            Following {
                                // It was not there before.
                                from: Some(*all_times().start()),
                                ..self.following
                            },
                        ),
                        Err(error) => failed = Some(error),
                    }
                }
                for device in self.ids() {
                    match self.look(&device, reach).await {
                        Err(Failure::Failed(error)) => failed = Some(error.downcast()?),
                        done => done?,
                    }
                }
                self.tell(failed.as_ref());
            }
        }
    }

    /// Prints what is new of one device.
    async fn look(&mut self, device: &DeviceId, reach: Reach) -> Result<(), Failure> {
        let Some(follow) = self.devices.get_mut(device) else {
            return Ok(());
        };
        let mut news = follow.look(now(), reach).await?;
        while let Some(record) = news.next().await {
            // What was found before an error is told before it.
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.to.flush()?;
                    return Err(error.into());
                }
            };
            self.tally.count(&record);
            if self.arguments.json {
                writeln!(self.to, "{}", record.to_json())?;
                continue;
            }
            if !self.headed {
                writeln!(self.to, "{}", self.table.heading())?;
                self.headed = true;
            }
            for row in self.table.rows(&record) {
                writeln!(self.to, "{row}")?;
            }
        }
        self.to.flush()?;
        if let Some(times) = follow.shortened()
            && self.shortened.insert(device.clone())
        {
            eprintln!(
                "zk-reader: {device} has more records than are remembered: only what is signed \
                 from {} to {} is looked for",
                times.start(),
                times.end()
            );
        }
        Ok(())
    }

    /// New devices are followed, new differences told.
    fn take(&mut self, registry: Registry, following: Following) {
        let registry = of_device(registry, self.arguments.device.as_ref());
        for device in registry.devices {
            let reader = self.reader;
            self.devices
                .entry(device)
                .or_insert_with_key(|device| reader.follow(device, following));
        }
        let mut new = registry.differences;
        new.retain(|found| self.alarms.insert(found.to_string()));
        alarms(&new);
    }

    /// Each failure once, and its end.
    fn tell(&mut self, error: Option<&zk_reader::Error>) {
        let error = error.map(|error| {
            let chain =
                std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
            let mut told: Vec<_> = chain.map(ToString::to_string).collect();
            told.dedup();
            told.join(": ")
        });
        match &error {
            Some(text) if self.error.as_ref() != Some(text) => {
                eprintln!("zk-reader: {}; trying again", printable(text));
            }
            None if self.error.is_some() => eprintln!("zk-reader: the store answers again"),
            _ => {}
        }
        self.error = error;
    }

    fn ids(&self) -> Vec<DeviceId> {
        self.devices.keys().cloned().collect()
    }
}

/// Each so many looks are everywhere.
const EVERYWHERE: usize = 30;

/// So many keys are remembered in all.
const REMEMBER: usize = 1_000_000;
