//! Records as they come in, whatever time they are signed with.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::time::Duration;

use zk_envelope::{DeviceId, Timestamp};

use crate::Error;
use crate::reader::{Reader, Record, Records, YEAR_1970_MS, all_times, time_of_key};

/// Finds the records of a device that have come in since it looked last, from
/// [`Reader::follow`].
///
/// A store is ordered by the time that a device signs, and what comes in last
/// need not be the newest: a device publishes what it kept during an outage, or
/// its clock was wrong. So this looks not only behind the last key, and remembers
/// the keys that it has seen:
///
/// - [`Reach::Recent`]: from ten minutes before the newest record that is not of
///   the future. A device that drains its spool, oldest first, is found by this
///   however old its records are, as nothing newer is stored yet.
/// - [`Reach::All`], as the first look does: also back to [`Following::late`]
///   before that record, and in 1970, where records of a clock that was not set
///   stand.
///
/// Not found is what comes in behind newer records with a time older than that:
/// list or export that time later.
#[derive(Debug)]
pub struct Follow<'a> {
    reader: &'a Reader,
    device: DeviceId,
    following: Following,
    /// 1970, and all that follows.
    windows: [Window; 2],
    begun: bool,
}

/// How to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// Of what is there already, the first look gives what was signed at this
    /// time or later; `None`: nothing.
    pub from: Option<Timestamp>,
    /// How far back what comes in late is looked for.
    pub late: Duration,
    /// How many keys are remembered at most, 16 bytes of each. If more lie in
    /// that time, it is made shorter: at its end as long as that is in the
    /// future, so that a clock far ahead hides nothing of today.
    pub remember: usize,
}

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Around the newest record.
    Recent,
    /// Also where records can come in late: asks for every key of that time.
    All,
}

impl Reader {
    /// Follows a device. Nothing is read yet.
    #[must_use]
    pub fn follow(&self, device: &DeviceId, following: Following) -> Follow<'_> {
        let (first, last) = all_times().into_inner();
        let (unset_last, set_first) = (millis(YEAR_1970_MS - 1), millis(YEAR_1970_MS));
        let window = |first, last| Window {
            first,
            last,
            end: last,
            seen: BTreeSet::new(),
            hash: RandomState::new(),
            capacity: (following.remember / 2).max(1),
            shortened: false,
        };
        Follow {
            reader: self,
            device: device.clone(),
            following,
            windows: [window(first, unset_last), window(set_first, last)],
            begun: false,
        }
    }
}

impl<'a> Follow<'a> {
    /// Looks for what has come in. What [`News::next`] has not given yet when
    /// it fails or is dropped is found again.
    ///
    /// # Errors
    /// [`Error::Store`]: look again.
    pub async fn look(&mut self, now: Timestamp, reach: Reach) -> Result<News<'_, 'a>, Error> {
        let reach = if self.begun { reach } else { Reach::All };
        let newest = if self.begun {
            self.windows[SET].newest(now)
        } else {
            self.newest_stored(now).await?
        };
        let floor = newest.map_or(millis(0), |newest| before(newest, self.following.late));
        self.windows[SET].advance(match (self.begun, self.following.from) {
            (false, Some(from)) => floor.min(from),
            _ => floor,
        });
        self.windows[SET].reach(now);
        // What is found by this look is shown, even if it can't be remembered.
        let last = self.windows[SET].last;
        let mut places = VecDeque::new();
        for (place, window) in self.windows.iter_mut().enumerate() {
            let from = match (reach, place, newest) {
                (Reach::All, ..) => window.first,
                (Reach::Recent, SET, Some(newest)) => before(newest, OVERLAP).max(window.first),
                (Reach::Recent, SET, None) => window.first,
                (Reach::Recent, ..) => continue,
            };
            let times = from..=window.last;
            let store = self.reader.store();
            let mut keys = store.reading_keys(&self.device, times.clone());
            let mut unseen: Option<RangeInclusive<Timestamp>> = None;
            while let Some(key) = keys.next().await {
                let key = key?;
                if !window.is_new(&key, last) {
                    continue;
                }
                let at = time_of_key(&key);
                // What is there when it begins is not new.
                if !self.begun && self.following.from.is_none_or(|from| at < Some(from)) {
                    window.remember(&key, now);
                } else if let (Some(at), Some(unseen)) = (at, &mut unseen) {
                    *unseen = at.min(*unseen.start())..=at.max(*unseen.end());
                } else {
                    // A key that tells no time can be anywhere.
                    unseen = Some(at.map_or(times.clone(), |at| at..=at));
                }
            }
            places.extend(unseen.map(|times| (place, times)));
        }
        self.begun = true;
        Ok(News {
            follow: self,
            now,
            last,
            places,
            records: None,
        })
    }

    /// The time in which records are looked for, if that is shorter than was
    /// asked for because too many lie in it.
    #[must_use]
    pub fn shortened(&self) -> Option<RangeInclusive<Timestamp>> {
        let window = &self.windows[SET];
        window.shortened.then_some(window.first..=window.last)
    }

    async fn newest_stored(&self, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        let times = *all_times().start()..=now;
        let mut keys = self.reader.store().newest_keys(&self.device, times, 1);
        let newest = keys.next().await.transpose()?;
        Ok(newest.as_deref().and_then(time_of_key))
    }
}

/// What has come in, from [`Follow::look`].
#[derive(Debug)]
pub struct News<'n, 'a> {
    follow: &'n mut Follow<'a>,
    now: Timestamp,
    last: Timestamp,
    /// Where there is something new, and in which window.
    places: VecDeque<(usize, RangeInclusive<Timestamp>)>,
    records: Option<(usize, Records<'a>)>,
}

impl News<'_, '_> {
    /// The next record, or `None` after the last.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing follows it.
    pub async fn next(&mut self) -> Option<Result<Record, Error>> {
        loop {
            let Some((place, records)) = &mut self.records else {
                let (place, times) = self.places.pop_front()?;
                let (reader, device) = (self.follow.reader, &self.follow.device);
                self.records = Some((place, reader.records(device, times)));
                continue;
            };
            let window = &mut self.follow.windows[*place];
            match records
                .next_where(|key| window.is_new(key, self.last))
                .await
            {
                Some(Ok(record)) => {
                    window.remember(&record.key, self.now);
                    return Some(Ok(record));
                }
                Some(Err(error)) => {
                    self.places.clear();
                    return Some(Err(error));
                }
                None => self.records = None,
            }
        }
    }
}

/// A span of signed time, and the keys that were seen there.
#[derive(Debug)]
struct Window {
    first: Timestamp,
    last: Timestamp,
    /// What `last` was before anything had to be forgotten.
    end: Timestamp,
    /// Times, and hashes of keys; a key that tells no time counts as the last.
    seen: BTreeSet<(Timestamp, u64)>,
    /// With a secret of its own: nobody can choose keys of the same hash.
    hash: RandomState,
    capacity: usize,
    shortened: bool,
}

impl Window {
    fn is_new(&self, key: &str, last: Timestamp) -> bool {
        let entry = self.entry(key);
        (self.first..=last).contains(&entry.0) && !self.seen.contains(&entry)
    }

    /// Forgets what is past its capacity, and looks there no more: what is
    /// farthest in the future, and when nothing is, the oldest.
    fn remember(&mut self, key: &str, now: Timestamp) {
        self.seen.insert(self.entry(key));
        if self.seen.len() <= self.capacity {
            return;
        }
        match (self.seen.last(), self.seen.first()) {
            (Some(&(newest, _)), _) if newest > now => {
                self.last = self.last.min(before(newest, Duration::from_millis(1)));
                self.seen.split_off(&(after(self.last), 0));
                self.shortened = true;
            }
            (_, Some(&(oldest, _))) => {
                self.advance(after(oldest));
                self.shortened = true;
            }
            _ => {}
        }
    }

    /// Once the future from which it had to look away is there, it looks there
    /// again: better what was forgotten is shown twice than what is new never.
    fn reach(&mut self, now: Timestamp) {
        if self.last < now {
            self.last = self.end;
        }
    }

    fn advance(&mut self, first: Timestamp) {
        if first > self.first {
            self.first = first;
            self.seen = self.seen.split_off(&(first, 0));
        }
    }

    /// The newest that was seen and is not of the future.
    fn newest(&self, now: Timestamp) -> Option<Timestamp> {
        let (at, _) = self.seen.range(..=(now, u64::MAX)).next_back()?;
        Some(*at)
    }

    fn entry(&self, key: &str) -> (Timestamp, u64) {
        let at = time_of_key(key).unwrap_or(Timestamp::MAX);
        (at, self.hash.hash_one(key))
    }
}

fn before(time: Timestamp, span: Duration) -> Timestamp {
    let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    millis(time.as_millis().saturating_sub(span))
}

fn after(time: Timestamp) -> Timestamp {
    millis(time.as_millis() + 1)
}

fn millis(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap_or(Timestamp::MAX)
}

/// The place of the window after 1970; the other one is before it.
const SET: usize = 1;

/// Records that come in a little out of order are found by every look.
const OVERLAP: Duration = Duration::from_secs(600);
