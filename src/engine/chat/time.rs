//! Python's `strftime` for a moment in UTC, for the templates' `strftime_now`.
//!
//! ```text
//! strftime("%d %b %Y", 1_751_632_496)  →  "04 Jul 2025"
//! ```

/// `unix_seconds` as `format` says.
///
/// The directives of Python's documentation in the C locale, and `%e`, `%D`, `%F`, `%T`, `%R`, `%s`, `%h`, `%n`, `%t`, `%C`, `%k`,
/// `%l`, `%P`, `%g`; a `-` after the percent sign drops the padding, as in glibc. The error names what is unknown.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> Result<String, String> {
    let moment = Moment::new(unix_seconds);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(letter) = rest.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let mut directive = rest.next();
        let pad = if directive == Some('-') { Pad::None } else { Pad::Full };
        if pad == Pad::None {
            directive = rest.next();
        }
        match directive.and_then(|directive| moment.field(directive, pad)) {
            Some(field) => text.push_str(&field),
            None => {
                let shown = directive.map(String::from).unwrap_or_default();
                return Err(format!("strftime_now: %{shown} is not supported"));
            }
        }
    }
    Ok(text)
}

#[derive(Clone, Copy, PartialEq)]
enum Pad {
    Full,
    None,
}

/// A moment as the calendar and the clock show it in UTC.
struct Moment {
    unix_seconds: i64,
    year: i64,
    month: i64,
    day: i64,
    /// 0 = the first of January.
    day_of_year: i64,
    /// 0 = Sunday.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    fn new(unix_seconds: i64) -> Self {
        let (days, seconds) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Self {
            unix_seconds,
            year,
            month,
            day,
            day_of_year: days - days_from_civil(year, 1, 1),
            weekday: (days + 4).rem_euclid(7),
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn field(&self, directive: char, pad: Pad) -> Option<String> {
        let number = |value: i64, width: usize| match pad {
            Pad::Full => format!("{value:0width$}"),
            Pad::None => value.to_string(),
        };
        let spaced = |value: i64| if pad == Pad::Full { format!("{value:2}") } else { value.to_string() };
        let join = |format| strftime(format, self.unix_seconds).ok();
        let month = MONTHS[self.month as usize - 1];
        let weekday = WEEKDAYS[self.weekday as usize];
        let hour12 = (self.hour + 11) % 12 + 1;
        let monday_based = (self.weekday + 6) % 7;
        Some(match directive {
            'a' => weekday[..3].to_owned(),
            'A' => weekday.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'B' => month.to_owned(),
            'c' => return join("%a %b %e %H:%M:%S %Y"),
            'C' => number(self.year.div_euclid(100), 2),
            'd' => number(self.day, 2),
            'D' | 'x' => return join("%m/%d/%y"),
            'e' => spaced(self.day),
            'f' => "000000".to_owned(),
            'F' => return join("%Y-%m-%d"),
            'g' => number(self.iso_week().0.rem_euclid(100), 2),
            'G' => number(self.iso_week().0, 4),
            'H' => number(self.hour, 2),
            'I' => number(hour12, 2),
            'j' => number(self.day_of_year + 1, 3),
            'k' => spaced(self.hour),
            'l' => spaced(hour12),
            'm' => number(self.month, 2),
            'M' => number(self.minute, 2),
            'n' => "\n".to_owned(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if self.hour < 12 { "am" } else { "pm" }.to_owned(),
            'r' => return join("%I:%M:%S %p"),
            'R' => return join("%H:%M"),
            's' => self.unix_seconds.to_string(),
            'S' => number(self.second, 2),
            't' => "\t".to_owned(),
            'T' | 'X' => return join("%H:%M:%S"),
            'u' => (monday_based + 1).to_string(),
            'U' => number((self.day_of_year + 7 - self.weekday) / 7, 2),
            'V' => number(self.iso_week().1, 2),
            'w' => self.weekday.to_string(),
            'W' => number((self.day_of_year + 7 - monday_based) / 7, 2),
            'y' => number(self.year.rem_euclid(100), 2),
            // glibc does not pad the year; Python's own isoformat would.
            'Y' => self.year.to_string(),
            // A moment without a time zone has none to show, as datetime.now() in Python.
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// The year and the week of ISO 8601: weeks start on Monday and belong to the year of their Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let days = self.unix_seconds.div_euclid(86_400);
        let thursday = days - (self.weekday + 6) % 7 + 3;
        let (year, _, _) = civil(thursday);
        (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
    }
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// # Source
/// Howard Hinnant, `civil_from_days`, <https://howardhinnant.github.io/date_algorithms.html>.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_python() {
        // datetime.fromtimestamp(t, timezone.utc).replace(tzinfo=None).strftime(…)
        for (unix_seconds, format, expected) in [
            (1_751_632_496, "%Y-%m-%d %H:%M:%S", "2025-07-04 12:34:56"),
            (1_751_632_496, "%d %B %Y, %A %d %b %y %a", "04 July 2025, Friday 04 Jul 25 Fri"),
            (1_751_632_496, "%j %U %W %V %G %u %w %p %I %P %g", "185 26 26 27 2025 5 5 PM 12 pm 25"),
            (951_782_400, "%F %j %e|%-d|%-m", "2000-02-29 060 29|29|2"),
            (1_735_689_599, "%G-W%V %U %W %T %D", "2025-W01 52 53 23:59:59 12/31/24"),
            (-1, "%Y-%m-%d %I:%M:%S %p", "1969-12-31 11:59:59 PM"),
            (0, "%c|%x|%X|%%|%e|%k|%l", "Thu Jan  1 00:00:00 1970|01/01/70|00:00:00|%| 1| 0|12"),
        ] {
            assert_eq!(strftime(format, unix_seconds).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn every_day_counts_back_to_itself() {
        for days in (-800_000..800_000).step_by(37) {
            let (year, month, day) = civil(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn odd_formats_and_times_do_not_panic() {
        assert_eq!(strftime("%Q", 0).unwrap_err(), "strftime_now: %Q is not supported");
        assert_eq!(strftime("x%", 0).unwrap_err(), "strftime_now: % is not supported");
        assert_eq!(strftime("%-", 0).unwrap_err(), "strftime_now: % is not supported");
        for unix_seconds in [i64::MIN, i64::MAX] {
            assert!(strftime("%c %j %G %V %U %W %C %y", unix_seconds).is_ok());
        }
    }
}
