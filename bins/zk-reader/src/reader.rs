//! Records out of the store, judged by what the owner knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::SystemTime;

use zk_envelope::{
    DeviceId, Header, Kind, Opened, OwnerKey, Report, Timestamp, TrustFile, Verified,
};
use zk_sensors::Readings;
use zk_store::{Store, StoreError, StoredReading};
use zk_verify::{AlarmKind, Dated, Dating, Reason, recheck};

use crate::Error;
use crate::registry::{Registry, differences};
use crate::text::page;

/// All times, those at the beginning of 1970 included that a device signs while
/// its clock is not set.
#[must_use]
pub fn all_times() -> RangeInclusive<Timestamp> {
    Timestamp::from(SystemTime::UNIX_EPOCH)..=Timestamp::MAX
}

/// A store, seen by an owner: what is in it counts as far as the trust file
/// says so, and is opened with the owner's key.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    pub(crate) trust: TrustFile,
    owner: OwnerKey,
}

/// Which record to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The one under this key in the store: found at once.
    Key(String),
    /// Those with this sequence number, one for each stream that got so far:
    /// every key of the device is looked at.
    Sequence(u64),
}

impl Reader {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(store: Store, trust: TrustFile, owner: OwnerKey) -> Self {
        Self {
            store,
            trust,
            owner,
        }
    }

    /// The records of a device whose signed time lies in `times`, both ends
    /// included, by time, then stream, then number. They come page by page:
    /// memory does not grow with their number.
    #[must_use]
    pub fn records(&self, device: &DeviceId, times: RangeInclusive<Timestamp>) -> Records<'_> {
        Records {
            reader: self,
            device: device.clone(),
            stored: self.store.readings(device, times),
            from_key: None,
            failed: false,
        }
    }

    /// The newest `count` of them, in the same order; no others are looked at.
    /// Records that come in meanwhile may follow.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn newest(
        &self,
        device: &DeviceId,
        times: RangeInclusive<Timestamp>,
        count: u32,
    ) -> Result<Records<'_>, Error> {
        let mut keys = self.store.newest_keys(device, times.clone(), count);
        let mut first = None;
        while let Some(key) = keys.next().await {
            first = Some(key?);
        }
        let from = first.as_deref().and_then(time_of_key);
        let from = from.unwrap_or(*times.start()).max(*times.start());
        let mut records = self.records(device, from..=*times.end());
        records.from_key = first;
        Ok(records)
    }

    /// The records of these times that `wanted` tells of, 16 at most.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn find(
        &self,
        device: &DeviceId,
        times: RangeInclusive<Timestamp>,
        wanted: &Wanted,
    ) -> Result<Vec<Record>, Error> {
        let mut found = Vec::new();
        let mut records = self.records(device, wanted.within(times));
        while let Some(record) = records.next_where(|key| wanted.is(key)).await {
            found.push(record?);
            if found.len() == 16 {
                break;
            }
        }
        Ok(found)
    }

    /// The devices that the trust file or the store knows, and where the store's
    /// registry says something else than the trust file.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn registry(&self) -> Result<Registry, Error> {
        let mut devices: BTreeSet<_> = self.trust.devices.keys().cloned().collect();
        let registered = match self.store.devices().await {
            Err(StoreError::Damaged { key, detail, .. }) => Err((key, detail)),
            other => Ok(other?),
        };
        if let Ok(registered) = &registered {
            devices.extend(registered.iter().map(|(_, record)| record.device.clone()));
        }
        let differences = differences(&self.trust, registered);
        Ok(Registry {
            devices,
            differences,
        })
    }

    /// A record in full, for people: what it says, and what it is worth by the
    /// trust file.
    #[must_use]
    pub fn page(&self, record: &Record) -> String {
        page(record, &self.trust, self.owner.id())
    }

    /// What dates the records of devices whose clock was not right.
    #[must_use]
    pub fn dates(&self) -> Dates<'_> {
        Dates {
            reader: self,
            devices: BTreeMap::new(),
        }
    }

    async fn dating(&self, device: &DeviceId) -> Result<Dating, Error> {
        let mut dating = Dating::default();
        let mut stored = self.store.readings(device, all_times());
        while let Some(reading) = stored.next().await {
            let reading = match reading {
                Ok(reading) => reading,
                Err(StoreError::Damaged { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            // The kind is signed: what claims another one is no anchor, or changed.
            let kind = reading
                .envelope()
                .map(|envelope| envelope.unverified_header().kind);
            if !matches!(kind, Ok(Kind::TimeAnchor)) {
                continue;
            }
            if let State::Open { content, .. } = self.judge(reading).state
                && let Ok(Some(Report::TimeAnchor(anchor))) = content.report()
            {
                dating.anchor(content.header(), &anchor);
            }
        }
        Ok(dating)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn judge(&self, stored: StoredReading) -> Record {
        let delivery = Delivery {
            received_at: stored.received_at,
            principal: stored.principal.clone(),
            again: stored.again,
        };
        let (state, alarms) = self.state(&stored);
        Record {
            device: stored.device,
            key: stored.key,
            delivery: Some(delivery),
            state,
            alarms,
            dated: None,
        }
    }

    fn state(&self, stored: &StoredReading) -> (State, Vec<AlarmKind>) {
        let envelope = match stored.envelope() {
            Ok(envelope) => envelope,
            Err(StoreError::Damaged { detail, .. }) => return (State::Damaged { detail }, vec![]),
            Err(error) => {
                return (
                    State::Damaged {
                        detail: error.to_string(),
                    },
                    vec![],
                );
            }
        };
        let claimed = envelope.unverified_header().clone();
        let trusted = self.trust.devices.get(&stored.device);
        let verified = trusted.ok_or(Reason::UnknownDevice).and_then(|trusted| {
            recheck(envelope, stored.received_at, &stored.device, &trusted.keys)
                .map(|verified| (verified, trusted))
        });
        let (record, trusted) = match verified {
            Ok(verified) => verified,
            Err(reason) => {
                let alarm = AlarmKind::Refused {
                    reason,
                    signer: claimed.signer,
                };
                return (State::Refused { claimed, reason }, vec![alarm]);
            }
        };
        let recipients = &record.header().recipients;
        let unexpected = recipients.iter().filter(|id| !trusted.owners.contains(id));
        let left_out = trusted.owners.iter().filter(|id| !recipients.contains(id));
        let unexpected = unexpected.copied().map(AlarmKind::UnexpectedRecipient);
        let left_out = left_out.copied().map(AlarmKind::OwnerLeftOut);
        let alarms = unexpected.chain(left_out).collect();
        match record.open(&self.owner) {
            Ok(content) => (State::Open { record, content }, alarms),
            Err(error) => (State::Sealed { record, error }, alarms),
        }
    }
}

impl Wanted {
    /// Those of the times at which it can be.
    fn within(&self, times: RangeInclusive<Timestamp>) -> RangeInclusive<Timestamp> {
        match self {
            Self::Key(key) => match time_of_key(key) {
                Some(at) => at.max(*times.start())..=at.min(*times.end()),
                None => times,
            },
            Self::Sequence(_) => times,
        }
    }

    fn is(&self, key: &str) -> bool {
        match self {
            Self::Key(wanted) => key == wanted,
            Self::Sequence(sequence) => {
                let number = key.rsplit_once('#').map(|(_, number)| number);
                number == Some(&format!("{sequence:020}"))
            }
        }
    }
}

/// Records of one device, from [`Reader::records`].
#[derive(Debug)]
pub struct Records<'a> {
    reader: &'a Reader,
    device: DeviceId,
    stored: zk_store::Readings,
    /// What is before this key is left out.
    from_key: Option<String>,
    failed: bool,
}

impl Records<'_> {
    /// The next record, or `None` after the last.
    ///
    /// What does not verify or open is a record too; see [`Record::state`].
    ///
    /// # Errors
    /// [`Error::Store`]; nothing follows it.
    pub async fn next(&mut self) -> Option<Result<Record, Error>> {
        self.next_where(|_| true).await
    }

    /// Looks at the others' keys only.
    pub(crate) async fn next_where(
        &mut self,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<Result<Record, Error>> {
        while !self.failed {
            match self.stored.next().await? {
                Ok(reading) if self.is_before(&reading.key) || !wanted(&reading.key) => {}
                Ok(reading) => return Some(Ok(self.reader.judge(reading))),
                Err(StoreError::Damaged { key, .. }) if self.is_before(&key) || !wanted(&key) => {}
                Err(StoreError::Damaged { key, detail, .. }) => {
                    return Some(Ok(Record {
                        device: self.device.clone(),
                        key,
                        delivery: None,
                        state: State::Damaged { detail },
                        alarms: Vec::new(),
                        dated: None,
                    }));
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error.into()));
                }
            }
        }
        None
    }

    fn is_before(&self, key: &str) -> bool {
        self.from_key.as_deref().is_some_and(|first| key < first)
    }
}

/// What lies in the store under one key.
#[derive(Debug)]
pub struct Record {
    /// The device that it is stored under.
    pub device: DeviceId,
    /// Its key: `<time>#<stream>#<sequence, 20 digits>`. Anything, if the item
    /// is damaged.
    pub key: String,
    /// How it came into the store; `None` if not even that can be read.
    pub delivery: Option<Delivery>,
    /// What it is worth.
    pub state: State,
    /// What should not be.
    pub alarms: Vec<AlarmKind>,
    /// When it was made, if something knows better than its own clock and
    /// [`Dates::date`] was asked.
    pub dated: Option<Dated>,
}

/// Dates records by the time anchors of their device, from [`Reader::dates`].
///
/// The first record of a device whose clock no time source kept costs a look at
/// all that is stored of it; all others cost nothing.
#[derive(Debug)]
pub struct Dates<'a> {
    reader: &'a Reader,
    devices: BTreeMap<DeviceId, Dating>,
}

impl Dates<'_> {
    /// Fills in [`Record::dated`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn date(&mut self, record: &mut Record) -> Result<(), Error> {
        let Some(header) = record.header() else {
            return Ok(());
        };
        if !Dating::may_date(header) {
            return Ok(());
        }
        if !self.devices.contains_key(&record.device) {
            let dating = self.reader.dating(&record.device).await?;
            self.devices.insert(record.device.clone(), dating);
        }
        let dating = self.devices.get(&record.device);
        record.dated = dating.and_then(|dating| dating.date(header));
        Ok(())
    }
}

/// How a record came into the store, by the store's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it was received.
    pub received_at: Timestamp,
    /// Whose certificate brought it: SHA-256 of its DER, in hex.
    pub principal: String,
    /// How often it came in again.
    pub again: u64,
}

/// What a record is worth to the owner.
#[derive(Debug)]
pub enum State {
    /// No record at all.
    Damaged {
        /// What is wrong with it.
        detail: String,
    },
    /// The device's, by the trust file, and opened.
    Open {
        /// The record.
        record: Verified,
        /// What it says.
        content: Opened,
    },
    /// Not the device's, by the trust file.
    Refused {
        /// What it says of itself, of which nothing is proven.
        claimed: Header,
        /// Why.
        reason: Reason,
    },
    /// The device's, but the owner's key does not open it.
    Sealed {
        /// The record.
        record: Verified,
        /// Why.
        error: zk_envelope::Error,
    },
}

impl Record {
    /// Whether it verifies, opens, and raises no alarm.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        matches!(self.state, State::Open { .. }) && self.alarms.is_empty()
    }

    /// The header, if it is the device's word.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.verified().map(Verified::header)
    }

    /// The sensor readings, if that is what it says.
    #[must_use]
    pub fn readings(&self) -> Option<Readings> {
        match &self.state {
            State::Open { content, .. }
                if content.header().kind == Kind::Data
                    && content.content_type() == "application/json" =>
            {
                serde_json::from_slice(content.body()).ok()
            }
            _ => None,
        }
    }

    /// By how many milliseconds its own times have to be put forward.
    pub(crate) fn shift(&self) -> Option<i64> {
        let (dated, header) = self.dated.as_ref().zip(self.header())?;
        // Both are below 2^48.
        let [dated, signed] = [dated.time, header.time].map(|time| time.as_millis().cast_signed());
        Some(dated - signed)
    }

    pub(crate) fn verified(&self) -> Option<&Verified> {
        match &self.state {
            State::Open { record, .. } | State::Sealed { record, .. } => Some(record),
            State::Refused { .. } | State::Damaged { .. } => None,
        }
    }
}

pub(crate) fn time_of_key(key: &str) -> Option<Timestamp> {
    key.split_once('#')?.0.parse().ok()
}

/// As long as that: the time of records whose clock was not set.
pub(crate) const YEAR_1970_MS: u64 = 365 * 86_400_000;
