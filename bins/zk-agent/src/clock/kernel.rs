//! What the kernel knows of its own clock: adjtimex(2).
#![allow(unsafe_code, reason = "no crate reads adjtimex without it")]

use std::mem::MaybeUninit;
use std::time::Duration;

/// How the kernel's wall clock is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Discipline {
    /// A time source has set it, and not so long ago that it may have drifted by
    /// 16 s since.
    pub(crate) synchronised: bool,
    /// The most by which it may be wrong: as the time source has told the kernel,
    /// 500 ppm of the time since then, and what the kernel has yet to slew.
    pub(crate) error: Duration,
}

/// Asks the kernel. Without an answer, as under a filter of system calls that
/// forbids the question, nothing is known.
pub(crate) fn discipline() -> Discipline {
    let mut timex = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: timex is a struct of integers, so zeros are a value of it. modes is
    // 0: the kernel changes nothing and fills in the struct, which is ours alone.
    let (state, timex) = unsafe { (libc::adjtimex(timex.as_mut_ptr()), timex.assume_init()) };
    judge(
        state,
        timex.status,
        [timex.maxerror, timex.esterror],
        timex.offset,
    )
}

/// As ntp_adjtime(3) has it: a clock in error, or marked as such, is not kept by
/// anybody. The errors are the maximum and the estimate, in microseconds. The
/// offset is what is still being slewed: a time source may call a clock right
/// that is on its way there. It is in nanoseconds if the status says so.
fn judge(state: libc::c_int, status: libc::c_int, errors: [i64; 2], offset: i64) -> Discipline {
    let answered = state >= 0;
    let in_error = state == libc::TIME_ERROR || status & libc::STA_UNSYNC != 0;
    let [most, estimated] = errors.map(|error| u64::try_from(error).unwrap_or(0));
    let slewed = if status & libc::STA_NANO == 0 {
        Duration::from_micros(offset.unsigned_abs())
    } else {
        Duration::from_nanos(offset.unsigned_abs())
    };
    Discipline {
        synchronised: answered && !in_error,
        error: Duration::from_micros(most.max(estimated)).saturating_add(slewed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_the_kernel_vouches_for_is_synchronised() {
        let synchronised = |state, status| judge(state, status, [1, 1], 0).synchronised;
        assert!(synchronised(libc::TIME_OK, libc::STA_PLL));
        assert!(synchronised(libc::TIME_INS, libc::STA_PLL));
        assert!(!synchronised(libc::TIME_ERROR, libc::STA_PLL));
        assert!(!synchronised(
            libc::TIME_OK,
            libc::STA_PLL | libc::STA_UNSYNC
        ));
        // EPERM
        assert!(!synchronised(-1, 0));
    }

    #[test]
    fn the_larger_error_counts_and_what_is_yet_to_be_slewed() {
        let slewing = |status, offset| judge(libc::TIME_OK, status, [1_000, 0], offset).error;
        assert_eq!(slewing(0, -300_000), Duration::from_millis(301));
        let nano = slewing(libc::STA_NANO, 300_000_000);
        assert_eq!(nano, Duration::from_millis(301));
        let error = |errors| judge(libc::TIME_OK, 0, errors, 0).error;
        assert_eq!(error([16_000, 3]), Duration::from_millis(16));
        assert_eq!(error([0, 2_500]), Duration::from_micros(2_500));
        assert_eq!(error([-1, -1]), Duration::ZERO);
    }

    #[test]
    fn this_kernel_answers() {
        let Discipline {
            synchronised,
            error,
        } = discipline();
        // It holds itself to be unsynchronised from 16 s on, without what it slews.
        assert!(
            !synchronised || error < Duration::from_secs(17),
            "{error:?}"
        );
    }
}
