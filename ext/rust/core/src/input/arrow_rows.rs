//! Arrow record batches -> JSON Lines, for Parquet, Arrow and Feather files.
//!
//! Columnar files give every struct the same members and fill in nulls. Such a null says "absent", so null members are left
//! out, in columns and in structs at any depth; null items of lists stay. Floats keep the fewest digits that read back
//! equal, and NaN, which is how tables from pandas spell absent, counts as null.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;

use crate::error::Error;
use crate::json::{append_canonical, python_float};
use crate::types::Json;

/// Append one line for each row of `batch` to `out`.
///
/// # Errors
/// [`Error::Data`] naming the column whose type has no JSON form; cast it first.
pub fn append_lines(batch: &RecordBatch, out: &mut String) -> Result<(), Error> {
    let schema = batch.schema();
    for row in 0..batch.num_rows() {
        out.push('{');
        let start = out.len();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            append_member(out, start, field.name(), column.as_ref(), row)
                .map_err(|found| unsupported(field.name(), &found))?;
        }
        out.push_str("}\n");
    }
    Ok(())
}

fn unsupported(column: &str, found: &DataType) -> Error {
    let message = format!("values of type {found} have no JSON form; cast or drop the column");
    Error::Data { place: format!("column \"{column}\"").into(), message: message.into() }
}

type Appended = Result<(), DataType>;

fn append_member(out: &mut String, start: usize, name: &str, values: &dyn Array, row: usize) -> Appended {
    let before = out.len();
    if before > start {
        out.push(',');
    }
    append_text(out, name);
    out.push(':');
    let value = out.len();
    append_value(out, values, row)?;
    if &out[value..] == "null" {
        out.truncate(before);
    }
    Ok(())
}

fn append_text(out: &mut String, text: &str) {
    append_canonical(out, &Json::String(text.into()));
}

fn append_value(out: &mut String, values: &dyn Array, row: usize) -> Appended {
    if values.is_null(row) && !matches!(values.data_type(), DataType::Union(_, _)) {
        out.push_str("null");
        return Ok(());
    }
    match values.data_type() {
        DataType::Null => out.push_str("null"),
        DataType::Boolean => out.push_str(if values.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Int8 => append_integer::<Int8Type>(out, values, row),
        DataType::Int16 => append_integer::<Int16Type>(out, values, row),
        DataType::Int32 => append_integer::<Int32Type>(out, values, row),
        DataType::Int64 => append_integer::<Int64Type>(out, values, row),
        DataType::UInt8 => append_integer::<UInt8Type>(out, values, row),
        DataType::UInt16 => append_integer::<UInt16Type>(out, values, row),
        DataType::UInt32 => append_integer::<UInt32Type>(out, values, row),
        DataType::UInt64 => append_integer::<UInt64Type>(out, values, row),
        DataType::Float32 => {
            // by way of its own shortest text, or 0.1 would come out with the digits of a double
            let number = values.as_primitive::<Float32Type>().value(row);
            append_float(out, number.to_string().parse().unwrap_or(f64::NAN));
        }
        DataType::Float64 => append_float(out, values.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => append_text(out, values.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => append_text(out, values.as_string::<i64>().value(row)),
        DataType::Utf8View => append_text(out, values.as_string_view().value(row)),
        DataType::List(_) => append_list(out, values.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => append_list(out, values.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(_, _) => append_list(out, values.as_fixed_size_list().value(row).as_ref())?,
        DataType::Struct(fields) => {
            let columns = values.as_struct();
            out.push('{');
            let start = out.len();
            for (field, column) in fields.iter().zip(columns.columns()) {
                append_member(out, start, field.name(), column.as_ref(), row)?;
            }
            out.push('}');
        }
        DataType::Union(_, _) => {
            let union = values.as_union();
            append_value(out, union.child(union.type_id(row)).as_ref(), union.value_offset(row))?;
        }
        DataType::Map(_, _) => append_map(out, values, row)?,
        DataType::Dictionary(_, _) => {
            // Keys are turned into indices for a whole array at a time, so look at an array of one.
            let one = values.slice(row, 1);
            let dictionary = one.as_any_dictionary();
            append_value(out, dictionary.values().as_ref(), dictionary.normalized_keys()[0])?;
        }
        other => return Err(other.clone()),
    }
    Ok(())
}

fn append_list(out: &mut String, items: &dyn Array) -> Appended {
    out.push('[');
    for index in 0..items.len() {
        if index > 0 {
            out.push(',');
        }
        append_value(out, items, index)?;
    }
    out.push(']');
    Ok(())
}

/// A map with text keys is an object.
fn append_map(out: &mut String, values: &dyn Array, row: usize) -> Appended {
    let entries = values.as_map().value(row);
    let (keys, items) = (entries.column(0), entries.column(1));
    out.push('{');
    let start = out.len();
    for index in 0..entries.len() {
        let mut key = String::new();
        append_value(&mut key, keys.as_ref(), index)?;
        let Ok(Json::String(name)) = crate::json::parse_text(&key) else { return Err(values.data_type().clone()) };
        append_member(out, start, &name, items.as_ref(), index)?;
    }
    out.push('}');
    Ok(())
}

fn append_integer<T: ArrowPrimitiveType<Native: std::fmt::Display>>(out: &mut String, values: &dyn Array, row: usize) {
    out.push_str(&values.as_primitive::<T>().value(row).to_string());
}

fn append_float(out: &mut String, number: f64) {
    if number.is_nan() {
        out.push_str("null");
    } else {
        // Infinity is left as it is: the line's parser names it.
        out.push_str(&python_float(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{
        ArrayRef, BooleanArray, DictionaryArray, Float32Array, Float64Array, Int64Array, StringArray, StructArray,
    };
    use arrow_schema::Field;
    use std::sync::Arc;

    #[test]
    fn nulls_are_absent_and_numbers_short() {
        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("a\"\n"), None]);
        list.append_value(Vec::<Option<&str>>::new());
        let inner: ArrayRef = Arc::new(StringArray::from(vec![Some("é"), None]));
        let record = StructArray::from(vec![
            (Arc::new(Field::new("role", DataType::Utf8, true)), inner),
            (
                Arc::new(Field::new("n", DataType::Int64, true)),
                Arc::new(Int64Array::from(vec![None, Some(-3)])) as ArrayRef,
            ),
        ]);
        let dictionary: DictionaryArray<Int8Type> = vec![Some("x"), None].into_iter().collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("l", Arc::new(list.finish())),
            ("s", Arc::new(record)),
            ("f", Arc::new(Float32Array::from(vec![Some(0.1), None]))),
            ("d", Arc::new(Float64Array::from(vec![f64::NAN, 1e20]))),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
            ("c", Arc::new(dictionary)),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut out = String::new();
        append_lines(&batch, &mut out).unwrap();
        let expected = "{\"l\":[\"a\\\"\\n\",null],\"s\":{\"role\":\"é\"},\"f\":0.1,\"b\":true,\"c\":\"x\"}\n\
                        {\"l\":[],\"s\":{\"n\":-3},\"d\":1e+20}\n";
        assert_eq!(out, expected);
    }
}
