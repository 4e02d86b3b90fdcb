//! A wall clock that is wrong as the test says, for everything in this process that
//! asks the C library what time it is: the agent, TLS, the log. The kernel's own
//! clock is everybody's and stays as it is, and so do those that are never set.
#![allow(
    unsafe_code,
    reason = "it takes the place of a function of the C library"
)]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use rustix::time::ClockId;

/// By how many milliseconds the wall clock is ahead of the kernel's.
static AHEAD_MS: AtomicI64 = AtomicI64::new(0);

/// Sets the wall clock of this process so many milliseconds ahead of the right one.
pub(crate) fn set(ahead_ms: i64) {
    AHEAD_MS.store(ahead_ms, Ordering::SeqCst);
}

/// The clock that counts from the machine's start, in milliseconds.
pub(crate) fn since_boot_ms() -> u64 {
    let up = rustix::time::clock_gettime(ClockId::Boottime);
    up.tv_sec.unsigned_abs() * 1000 + up.tv_nsec.unsigned_abs() / 1_000_000
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_millis()).unwrap()
}

/// Fails unless whoever asks is told the wrong time when it is wrong. Returns the
/// right wall clock minus the one since boot.
pub(crate) fn check() -> i64 {
    let right = offset_ms();
    set(-10_500);
    let (wrong, of_another_crate) = (offset_ms(), jiff::Timestamp::now().as_millisecond());
    assert!((right - 10_500 - wrong).abs() < 1000, "{right} {wrong}");
    assert!((wall_ms() - of_another_crate).abs() < 1000);
    set(0);
    right
}

/// The wall clock minus the one since boot, from readings of both that lie close
/// together.
fn offset_ms() -> i64 {
    let pairs = (0..100).map(|_| {
        let (before, wall, after) = (since_boot_ms(), wall_ms(), since_boot_ms());
        (after - before, wall - i64::try_from(before).unwrap())
    });
    pairs.min().unwrap().1
}

/// What std, and with it every crate here, asks for the wall clock. The linker takes
/// this one before the C library's.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    // SAFETY: the arguments are the caller's, who owes them to clock_gettime(2): the
    // kernel checks the clock, and the address as well.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if result == 0 && clock == libc::CLOCK_REALTIME {
        let ahead = AHEAD_MS.load(Ordering::SeqCst);
        // SAFETY: the kernel has just written there.
        let time = unsafe { &mut *time };
        let ns = time.tv_nsec + ahead % 1000 * 1_000_000;
        time.tv_sec += ahead / 1000 + ns.div_euclid(1_000_000_000);
        time.tv_nsec = ns.rem_euclid(1_000_000_000);
    }
    if result == 0 { 0 } else { -1 }
}
