//! Objects in pictures: their names and boxes, for `<ref-object>` and `<bbox>` in texts, as the family writes them.
//!
//! A row gives boxes in pixels of the upright picture, or as shares of its sides. What is written depends on the size that
//! the model sees, so it is known once the picture has been looked at.
use super::rule::Rule;
use super::{About, Family, Item, text_part};
use crate::error::RowError;
use crate::types::{Json, Message};
use serde::Deserialize;

const REF: &str = "<ref-object>";
const BBOX: &str = "<bbox>";

/// How a family writes objects.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BoxMarks {
    /// What numbers count.
    pub(crate) space: Space,
    /// A box, with `{x1}`, `{y1}`, `{x2}` and `{y2}`.
    pub(crate) bbox: Box<str>,
    /// A point, with `{x1}` and `{y1}`.
    pub(crate) point: Box<str>,
    /// A name, with `{name}`.
    pub(crate) name: Box<str>,
}

/// What the numbers of a box count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Thousandths of the picture's sides.
    Norm1000,
    /// Pixels of the picture as the model sees it.
    Resized,
}

/// What the boxes of a row count.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    /// Pixels of the upright picture.
    Real,
    /// Shares of its sides, of this many.
    Share(f64),
}

/// The objects of a row.
#[derive(Debug)]
pub(crate) struct Objects {
    place: String,
    names: Vec<Json>,
    boxes: Vec<Json>,
}

fn fault(place: &str, message: impl Into<String>) -> RowError {
    RowError::at(place, "media_box", message)
}

impl Objects {
    /// From the column `objects`: `ref`, `bbox`, `bbox_type` (real, norm1, norm1000) and `image_id`.
    ///
    /// # Errors
    /// [`RowError`] for another form.
    pub(crate) fn read(value: &Json, place: String) -> Result<Self, RowError> {
        let list = |name: &str| match value.member(name) {
            None | Some(Json::Null) => Ok(vec![]),
            Some(Json::Array(items)) => Ok(items.clone()),
            Some(_) => Err(fault(&place, format!("{name}: expected a list"))),
        };
        if !matches!(value, Json::Object(_)) {
            return Err(fault(&place, "expected an object with ref and bbox"));
        }
        let (names, boxes, images) = (list("ref")?, list("bbox")?, list("image_id")?);
        let kind = value.member("bbox_type").cloned().unwrap_or_else(|| Json::String("real".into()));
        if !images.is_empty() && images.len() != boxes.len() {
            return Err(fault(
                &place,
                format!("{} boxes and {} image_id; give each its own", boxes.len(), images.len()),
            ));
        }
        let part = |(index, numbers): (usize, Json)| {
            let image = images.get(index).cloned().unwrap_or_else(|| Json::Number("0".into()));
            let member = |name: &str, value: Json| (name.into(), value);
            Json::Object(vec![
                member("type", Json::String("bbox".into())),
                member("bbox", numbers),
                member("bbox_type", kind.clone()),
                member("image_id", image),
            ])
        };
        let name = |name: Json| Json::Object(vec![("type".into(), Json::String("ref".into())), ("ref".into(), name)]);
        let names = names.into_iter().map(name).collect();
        Ok(Self { place, names, boxes: boxes.into_iter().enumerate().map(part).collect() })
    }

    /// Give names and boxes their places in the texts.
    ///
    /// # Errors
    /// [`RowError`] where there are more places than objects, or fewer.
    pub(crate) fn attach(&self, messages: &mut [Message]) -> Result<(), RowError> {
        let (mut names, mut boxes) = (self.names.iter(), self.boxes.iter());
        let mut counts = [0, 0];
        let mut split = |text: &str, out: &mut Vec<Json>| {
            let mut rest = text;
            while let Some((at, tag)) = [REF, BBOX].iter().filter_map(|tag| Some((rest.find(tag)?, *tag))).min() {
                if at > 0 {
                    out.push(text_part(&rest[..at]));
                }
                counts[usize::from(tag == BBOX)] += 1;
                let next = if tag == BBOX { boxes.next() } else { names.next() };
                out.extend(next.cloned());
                rest = &rest[at + tag.len()..];
            }
            if !rest.is_empty() {
                out.push(text_part(rest));
            }
        };
        for message in messages.iter_mut() {
            let Some((name, content)) = message.fields.get_mut(1) else { continue };
            if &**name != "content" {
                continue;
            }
            let mut out = vec![];
            match content {
                Json::String(text) if text.contains(REF) || text.contains(BBOX) => split(text, &mut out),
                Json::Array(parts) => {
                    for part in std::mem::take(parts) {
                        match part.member("text") {
                            Some(Json::String(text)) => split(&text.clone(), &mut out),
                            _ => out.push(part),
                        }
                    }
                }
                _ => continue,
            }
            message.pieces.clear();
            *content = Json::Array(out);
        }
        for (tag, places, given) in [(REF, counts[0], self.names.len()), (BBOX, counts[1], self.boxes.len())] {
            if places != given {
                let message = format!("{given} objects and {places} places {tag} for them; write it once for each");
                return Err(fault(&self.place, message));
            }
        }
        Ok(())
    }
}

/// Write names and boxes of a conversation whose pictures have been looked at; texts side by side become one.
///
/// # Errors
/// [`RowError`] for a box that is none, or not inside its picture.
pub(crate) fn write(family: &Family, messages: &mut [Message], items: &[Item]) -> Result<(), RowError> {
    for (index, message) in messages.iter_mut().enumerate() {
        let Some((_, content)) = message.fields.get_mut(1) else { continue };
        let Json::Array(parts) = content else { continue };
        if !parts.iter().any(|part| kind_of(part) == "bbox" || kind_of(part) == "ref") {
            continue;
        }
        let place = format!("$.messages[{index}]");
        let Some(marks) = &family.boxes else {
            return Err(fault(&place, format!("{} writes no boxes; leave the column objects out", family.name)));
        };
        let mut out: Vec<Json> = vec![];
        let mut text = String::new();
        for part in std::mem::take(parts) {
            match kind_of(&part) {
                "bbox" => text.push_str(&written(marks, &part, family, items).map_err(|why| fault(&place, why))?),
                "ref" => match part.member("ref") {
                    Some(Json::String(name)) => text.push_str(&marks.name.replace("{name}", name)),
                    _ => return Err(fault(&place, "ref: expected texts")),
                },
                "text" => {
                    if let Some(Json::String(more)) = part.member("text") {
                        text.push_str(more);
                    }
                }
                _ => {
                    if !text.is_empty() {
                        out.push(text_part(&std::mem::take(&mut text)));
                    }
                    out.push(part);
                }
            }
        }
        *content = if out.is_empty() {
            Json::String(text.into())
        } else {
            if !text.is_empty() {
                out.push(text_part(&text));
            }
            Json::Array(out)
        };
    }
    Ok(())
}

fn kind_of(part: &Json) -> &str {
    match part.member("type") {
        Some(Json::String(name)) => name,
        _ => "",
    }
}

fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Number(text) => text.parse().ok(),
        _ => None,
    }
}

fn written(marks: &BoxMarks, part: &Json, family: &Family, items: &[Item]) -> Result<String, String> {
    let given = match part.member("bbox_type") {
        Some(Json::String(name)) if **name == *"real" => Given::Real,
        Some(Json::String(name)) if **name == *"norm1" => Given::Share(1.0),
        Some(Json::String(name)) if **name == *"norm1000" => Given::Share(1000.0),
        _ => return Err("bbox_type: expected real, norm1 or norm1000".to_owned()),
    };
    let numbers = match part.member("bbox") {
        Some(Json::Array(numbers)) => numbers.iter().map(number).collect::<Option<Vec<f64>>>(),
        _ => None,
    };
    let numbers = numbers.filter(|numbers| matches!(numbers.len(), 2 | 4));
    let numbers = numbers.ok_or("bbox: expected 4 numbers for a box, 2 for a point")?;
    let image = part.member("image_id").and_then(number).filter(|image| *image >= 0.0 && image.fract() == 0.0);
    let mut pictures = items.iter().filter_map(|item| match item.about {
        About::Picture(header) => Some((header, item)),
        _ => None,
    });
    let picture = image.and_then(|image| pictures.nth(image as usize));
    let (header, item) = picture.ok_or("image_id: the row has no such picture")?;
    let (height, width) = header.upright();
    let sides = [f64::from(width), f64::from(height)];
    let seen = match (marks.space, family.image.as_ref().map(|writing| &writing.rule)) {
        (Space::Norm1000, _) => [1000.0; 2],
        (Space::Resized, Some(Rule::Smart { patch, .. })) => {
            [(item.plan.grid[2] * patch) as f64, (item.plan.grid[1] * patch) as f64]
        }
        (Space::Resized, _) => return Err("the family's rule has no size for boxes; report this".to_owned()),
    };
    if numbers.len() == 4 && (numbers[0] > numbers[2] || numbers[1] > numbers[3]) {
        return Err(format!("the box {numbers:?} ends before it begins; give x1, y1, x2, y2"));
    }
    let mut text = String::from(if numbers.len() == 4 { &*marks.bbox } else { &*marks.point });
    for (at, name) in ["{x1}", "{y1}", "{x2}", "{y2}"].iter().enumerate().take(numbers.len()) {
        let (value, side) = (numbers[at], sides[at % 2]);
        let whole = if let Given::Share(whole) = given { whole } else { side };
        if !(0.0..=whole).contains(&value) {
            return Err(format!("the box {numbers:?} is not inside its picture of {width} by {height} pixels"));
        }
        let value = (value / whole * seen[at % 2]).round_ties_even();
        text = text.replace(name, &format!("{value:.0}"));
    }
    Ok(text)
}
