//! Pictures of rows as a column of Arrow, and back.
use super::header::{Format, Header};
use super::{About, MediaSpan};
use crate::arrow::{arrow, item, offsets, wrong_column};
use crate::error::Error;
use arrow_array::builder::{FixedSizeBinaryBuilder, LargeBinaryBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields};
use std::sync::Arc;

const INTS: [&str; 11] =
    ["start", "end", "features", "grid_t", "grid_h", "grid_w", "patches", "width", "height", "orientation", "rate"];

/// The members of a picture.
#[must_use]
pub(crate) fn fields() -> Fields {
    let mut fields = vec![Field::new("kind", DataType::Utf8, false)];
    fields.extend(INTS.map(|name| Field::new(name, DataType::Int32, false)));
    fields.push(Field::new("format", DataType::Utf8, false));
    fields.push(Field::new("digest", DataType::FixedSizeBinary(32), false));
    fields.push(Field::new("reference", DataType::Utf8, true));
    fields.push(Field::new("folder", DataType::Utf8, true));
    fields.push(Field::new("content", DataType::LargeBinary, true));
    Fields::from(fields)
}

fn name_of(format: Format) -> &'static str {
    match format {
        Format::Png => "png",
        Format::Jpeg => "jpeg",
        Format::Gif => "gif",
        Format::Webp => "webp",
        Format::Bmp => "bmp",
    }
}

/// The form, width, height, orientation and rate; of a sound, its samples and channels.
fn sizes(about: &About) -> (&'static str, [i32; 4]) {
    let picture = |header: &Header, rate: u32| {
        let (height, width) = header.upright();
        (name_of(header.format), [width as i32, height as i32, i32::from(header.orientation), rate as i32])
    };
    match about {
        About::Picture(header) => picture(header, 0),
        About::Frames(header, milli_fps) => picture(header, *milli_fps),
        About::Sound(sound) => ("wav", [sound.samples as i32, i32::from(sound.channels), 0, sound.rate as i32]),
    }
}

/// Pictures on their way into a batch.
#[derive(Debug)]
pub(crate) struct MediaColumn {
    offsets: Vec<i32>,
    ints: [Vec<i32>; INTS.len()],
    kind: StringBuilder,
    format: StringBuilder,
    digest: FixedSizeBinaryBuilder,
    reference: StringBuilder,
    folder: StringBuilder,
    content: LargeBinaryBuilder,
}

impl Default for MediaColumn {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            ints: Default::default(),
            kind: StringBuilder::new(),
            format: StringBuilder::new(),
            digest: FixedSizeBinaryBuilder::new(32),
            reference: StringBuilder::new(),
            folder: StringBuilder::new(),
            content: LargeBinaryBuilder::new(),
        }
    }
}

impl MediaColumn {
    /// Append a row's pictures.
    ///
    /// # Errors
    /// None in practice: digests have 32 bytes by their type.
    pub(crate) fn push(&mut self, pictures: &[MediaSpan]) -> Result<(), Error> {
        for span in pictures {
            let plan = &span.item.plan;
            let [t, h, w] = plan.grid.map(|side| side as i32);
            let (format, sizes) = sizes(&span.item.about);
            let sizes = [plan.patches as i32].into_iter().chain(sizes);
            let values = [span.start, span.end, span.features, t, h, w].into_iter().chain(sizes);
            self.ints.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
            self.kind.append_value(span.item.kind.name());
            self.format.append_value(format);
            self.digest.append_value(span.item.digest).map_err(|error| arrow(&error))?;
            self.reference.append_option(span.item.reference.as_deref());
            self.folder.append_option(span.item.folder.as_deref());
            self.content.append_option(span.item.content.as_deref());
        }
        self.offsets.push(self.ints[0].len() as i32);
        Ok(())
    }

    /// The column.
    ///
    /// # Errors
    /// `Error::Data` when it outgrew its offsets.
    pub(crate) fn finish(mut self) -> Result<ArrayRef, Error> {
        let mut columns: Vec<ArrayRef> = vec![Arc::new(self.kind.finish())];
        columns.extend(self.ints.map(|values| Arc::new(Int32Array::from(values)) as ArrayRef));
        columns.push(Arc::new(self.format.finish()));
        columns.push(Arc::new(self.digest.finish()));
        columns.push(Arc::new(self.reference.finish()));
        columns.push(Arc::new(self.folder.finish()));
        columns.push(Arc::new(self.content.finish()));
        let list = StructArray::try_new(fields(), columns, None).and_then(|pictures| {
            ListArray::try_new(item(DataType::Struct(fields())), offsets(self.offsets), Arc::new(pictures), None)
        });
        Ok(Arc::new(list.map_err(|error| arrow(&error))?))
    }
}

/// Where the pictures of a batch's rows lie.
#[derive(Debug)]
pub(crate) struct BatchMedia<'a> {
    lists: &'a ListArray,
    starts: &'a Int32Array,
    ends: &'a Int32Array,
}

impl<'a> BatchMedia<'a> {
    /// Of a batch of tokens; none if it has no column of pictures.
    ///
    /// # Errors
    /// `Error::Data` when the column is of another type.
    pub(crate) fn of_batch(batch: &'a RecordBatch) -> Result<Option<Self>, Error> {
        let Some(column) = batch.column_by_name("media") else { return Ok(None) };
        let wrong = || wrong_column("media");
        let lists = column.as_any().downcast_ref::<ListArray>().ok_or_else(wrong)?;
        let parts = lists.values().as_any().downcast_ref::<StructArray>().ok_or_else(wrong)?;
        let ints = |name: &str| {
            parts.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<Int32Array>()).ok_or_else(wrong)
        };
        Ok(Some(Self { lists, starts: ints("start")?, ends: ints("end")? }))
    }

    /// First token of each picture of a row, and the token after its last.
    pub(crate) fn of(&self, row: usize) -> impl Iterator<Item = (i32, i32)> + Clone {
        let offsets = self.lists.value_offsets();
        let range = offsets[row] as usize..offsets[row + 1] as usize;
        range.map(|at| (self.starts.value(at), self.ends.value(at)))
    }
}
