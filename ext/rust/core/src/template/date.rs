//! Dates for `strftime_now`: given by the caller, so that a rendering can be repeated.
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Fail, Outcome, fail};

/// A day, for templates that print the date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// Calendar year.
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Date {
    /// Today in UTC.
    #[must_use]
    pub fn today() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::from_days((seconds / 86_400) as i64)
    }

    /// The day `days` after 1970-01-01, by the proleptic Gregorian calendar.
    fn from_days(days: i64) -> Self {
        // Years are counted from March, so that the leap day comes last; 400 years have 146,097 days.
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u8;
        let year = (year_of_era + era * 400) as i32 + i32::from(month <= 2);
        Self { year, month, day }
    }

    fn to_days(self) -> i64 {
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let month_from_march = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let year_of_era = year.rem_euclid(400);
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        year.div_euclid(400) * 146_097 + day_of_era - 719_468
    }

    /// The day exists.
    #[must_use]
    pub fn is_valid(self) -> bool {
        (1..=12).contains(&self.month) && (1..=31).contains(&self.day) && Self::from_days(self.to_days()) == self
    }
}

/// `strftime(format)` at midnight of `date`, in the C locale.
pub(super) fn strftime(format: &str, date: Date) -> Outcome<String> {
    let mut out = String::new();
    let mut chars = format.chars();
    let days = date.to_days();
    let weekday = (days + 3).rem_euclid(7);
    let (month, name) = (usize::from(date.month.clamp(1, 12)) - 1, WEEKDAYS[weekday as usize]);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let of_year = days - Date { month: 1, day: 1, ..date }.to_days();
        let written = match chars.next() {
            Some('d') => write!(out, "{:02}", date.day),
            Some('e') => write!(out, "{:2}", date.day),
            Some('m') => write!(out, "{:02}", date.month),
            Some('Y') => write!(out, "{}", date.year),
            Some('y') => write!(out, "{:02}", date.year.rem_euclid(100)),
            Some('B') => out.write_str(MONTHS[month]),
            Some('b' | 'h') => out.write_str(&MONTHS[month][..3]),
            Some('A') => out.write_str(name),
            Some('a') => out.write_str(&name[..3]),
            Some('j') => write!(out, "{:03}", of_year + 1),
            Some('u') => write!(out, "{}", weekday + 1),
            Some('w') => write!(out, "{}", (weekday + 1) % 7),
            Some('F') => write!(out, "{}-{:02}-{:02}", date.year, date.month, date.day),
            Some('D' | 'x') => write!(out, "{:02}/{:02}/{:02}", date.month, date.day, date.year.rem_euclid(100)),
            Some('H' | 'M' | 'S') => out.write_str("00"),
            Some('I') => out.write_str("12"),
            Some('p') => out.write_str("AM"),
            Some('T' | 'X') => out.write_str("00:00:00"),
            Some('R') => out.write_str("00:00"),
            Some('%') => out.write_char('%'),
            Some('-') => match chars.next() {
                Some('d') => write!(out, "{}", date.day),
                Some('m') => write!(out, "{}", date.month),
                other => return fail(format!("the date format %-{} is not supported", other.unwrap_or(' '))),
            },
            other => return fail(format!("the date format %{} is not supported", other.unwrap_or(' '))),
        };
        written.map_err(|error| Fail::new(error.to_string()))?;
    }
    Ok(out)
}
