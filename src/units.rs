//! Sizes and durations as people write them.

use std::time::Duration;

/// Parses `500`, `64k`, `20G`, `20GB`, `1.5TiB`: bytes, with binary multiples
/// (`K` = 1,024) as mount options of the field have them.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: use a number with K, M, G or T, such as 20G");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = value * factor as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Prints a size with three significant digits: `1.50 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, v) if v < 9.995 => format!("{v:.2} {}", UNITS[unit]),
        (_, v) if v < 99.95 => format!("{v:.1} {}", UNITS[unit]),
        (_, v) => format!("{v:.0} {}", UNITS[unit]),
    }
}

/// Parses `90`, `90s`, `15m`, `1h`, `2d` (a bare number is seconds), or `inf`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a duration: use a number with s, m, h or d, such as 1h");
    let trimmed = text.trim();
    if trimmed == "inf" {
        return Ok(FOREVER);
    }
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    seconds.map(Duration::from_secs).map(|d| d.min(FOREVER)).ok_or_else(wrong)
}

/// A hundred years: longer than any mount, small enough to add to any clock.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Prints a duration in its two largest units: `1h 5m`.
pub fn format_duration(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        assert_eq!(parse_bytes("500"), Ok(500));
        assert_eq!(parse_bytes("64k"), Ok(65_536));
        assert_eq!(parse_bytes("20G"), Ok(20 << 30));
        assert_eq!(parse_bytes("1.5 TiB"), Ok(3 << 39));
        for wrong in ["", "G", "-1", "1X", "1e400", "99999999999999999999", "99999999T", "1.2.3"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1536 << 20), "1.50 GiB");
        assert_eq!(format_bytes(250 << 20), "250 MiB");
    }

    #[test]
    fn durations_round_trip() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("inf"), Ok(FOREVER));
        for wrong in ["", "h", "-1s", "1y", "99999999999999999999"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format_duration(Duration::from_secs(3_900)), "1h 5m");
    }

    crate::fuzz::fuzz_tests!(sizes_and_times);

    fn sizes_and_times(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "units",
            corpus: ["500", "64k", "1.5 TiB", "20GB", "90s", "1h", "inf"].map(Vec::from).to_vec(),
            words: &["e", ".", "-", "+", "inf", "NaN", "TiB", " ", "d", "min", "0x", "\u{a0}"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| {
            let text = String::from_utf8_lossy(input);
            let (bytes, time) = (parse_bytes(&text), parse_duration(&text));
            if let Ok(bytes) = bytes {
                let again = parse_bytes(&format_bytes(bytes).replace("PiB", "TiB")).unwrap();
                assert!(again <= bytes.saturating_add(bytes / 100), "{bytes}");
            }
            if let Ok(time) = time {
                assert!(time <= FOREVER);
                format_duration(time);
            }
            bytes.is_ok() || time.is_ok()
        });
    }
}
