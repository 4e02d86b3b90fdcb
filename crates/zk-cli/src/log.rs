use tracing_subscriber::filter::{LevelFilter, Targets};

/// Which lines are logged: a level, or levels for parts of the program besides, such as
/// `info,zk_publish=debug`.
///
/// A word alone has to be a level: as the name of a part, which other programs take
/// it for, a misspelt level would log nothing, and nobody would be told.
///
/// # Errors
/// What is wrong with it, and what to give instead.
///
/// ```
/// assert!(zk_cli::log_filter("info,zk_publish=debug").is_ok());
/// assert_eq!(
///     zk_cli::log_filter("inof").unwrap_err(),
///     "\"inof\" is no level: give error, warn, info, debug, trace or off, and for a part \
///      of the program its name and level, as in info,zk_publish=debug"
/// );
/// ```
pub fn log_filter(text: &str) -> Result<Targets, String> {
    let refused = |directive: &str| {
        format!(
            "{directive:?} is no level: give error, warn, info, debug, trace or off, and for a \
             part of the program its name and level, as in info,zk_publish=debug"
        )
    };
    let level = |text: &str| match text.parse::<LevelFilter>() {
        // Nothing would parse as a level, too.
        Ok(level) if !text.is_empty() => Ok(level),
        _ => Err(refused(text)),
    };
    let mut targets = Targets::new();
    for directive in text.split(',').map(str::trim) {
        targets = match directive.split_once('=') {
            Some((part, of_it)) if !part.is_empty() => targets.with_target(part, level(of_it)?),
            Some(_) => return Err(refused(directive)),
            None => targets.with_default(level(directive)?),
        };
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn levels_hold_for_all_and_for_parts() {
        let targets = log_filter("warn, zk_publish=debug,hyper=off").unwrap();
        assert_eq!(targets.default_level(), Some(LevelFilter::WARN));
        let enabled = |part, level| targets.would_enable(part, &level);
        assert!(enabled("zk_publish::link", tracing::Level::DEBUG));
        assert!(!enabled("hyper", tracing::Level::ERROR));
        assert!(!enabled("zk_agent", tracing::Level::INFO));
    }

    #[test]
    fn what_would_silently_log_nothing_is_refused() {
        for text in [
            "",
            "inof",
            "info,",
            "zk_publish",
            "=debug",
            "zk_publish=loud",
            "a=b=info",
        ] {
            log_filter(text).unwrap_err();
        }
    }
}
