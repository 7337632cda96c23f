//! Filters over lists and mappings.
use std::cmp::Ordering;

use super::args::Args;
use super::interp::Interp;
use super::names::Filter;
use super::names::Test;
use super::print;
use super::source::joint_source;
use super::value::{Shape, Text, Value};
use super::{Outcome, ast::BinaryOp, fail, ops, undefined};

/// Most lists that `slice` makes, and items of a `batch`.
const MAX_PORTIONS: i64 = 10_000;

impl<'a> Interp<'a> {
    #[expect(clippy::needless_pass_by_value, reason = "as its caller has it")]
    pub(super) fn apply_sequence_filter(
        &mut self,
        filter: Filter,
        value: Value<'a>,
        args: Args<'a>,
    ) -> Outcome<Value<'a>> {
        if let Some(length) = value.length()
            && !self.fuel.spend(length as u64)
        {
            return fail("out of fuel");
        }
        match filter {
            Filter::Join => self.join(&value, args),
            Filter::Items => Self::items(&value, args),
            Filter::DictSort => self.dict_sort(&value, args),
            Filter::Sort => self.sort(&value, args),
            Filter::Map => self.map(&value, args),
            Filter::Select(keep, by_attribute) => self.select(&value, args, keep, by_attribute),
            Filter::Batch | Filter::Slice => Self::portions(filter, &value, args),
            Filter::GroupBy => self.group_by(&value, args),
            Filter::Unique => self.unique(&value, args),
            Filter::Min | Filter::Max => self.extreme(&value, args, filter == Filter::Max),
            Filter::Sum => self.sum(&value, args),
            _ => {
                args.none("the filter")?;
                Self::pick(filter, &value)
            }
        }
    }

    fn pick(filter: Filter, value: &Value<'a>) -> Outcome<Value<'a>> {
        match filter {
            Filter::List => Ok(Value::list(iterated(value)?)),
            Filter::First => Ok(iterated(value)?.into_iter().next().unwrap_or(Value::Undefined("first of nothing"))),
            Filter::Last if matches!(value, Value::Generator(..)) => fail("'generator' object is not reversible"),
            Filter::Last => Ok(iterated(value)?.pop().unwrap_or(Value::Undefined("last of nothing"))),
            Filter::Reverse => {
                if let Value::Str(text) = value {
                    let reversed: String = text.as_str().chars().rev().collect();
                    return Ok(Value::Str(Text::owned(reversed, text.source)));
                }
                let mut items = iterated(value)?;
                items.reverse();
                // A generator is listed by Jinja2, everything else becomes an iterator.
                Ok(if matches!(value, Value::Generator(..)) { Value::list(items) } else { Value::generator(items) })
            }
            other => fail(format!("the filter {other:?} is not supported")),
        }
    }

    fn join(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [between, attribute] = args.bind("join", ["d", "attribute"])?;
        let between = between.map_or(Ok(Text::literal("")), |between| self.soft_text(between))?;
        let mut out = String::new();
        let mut source = 0;
        for (i, item) in iterated(value)?.into_iter().enumerate() {
            if i > 0 {
                out.push_str(between.as_str());
            }
            let item = match &attribute {
                Some(attribute) => self.attribute_path(item, attribute)?,
                None => item,
            };
            source = item.as_text().map_or(source, |text| joint_source(source, text.source));
            print::write_str(&item, &mut out, &self.fuel)?;
            if out.len() > 64 << 20 || !self.fuel.spend_bytes(between.as_str().len() + 8) {
                return fail("out of fuel: a text grows without bounds");
            }
        }
        Ok(Value::Str(Text::owned(out, source)))
    }

    fn items(value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        args.none("items")?;
        if value.is_undefined() {
            return Ok(Value::generator(Vec::new()));
        }
        match value.entries() {
            Some(entries) => Ok(Value::generator(pairs(entries))),
            None => fail("can only get item pairs from a mapping"),
        }
    }

    fn dict_sort(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let by_value = match by.as_ref().map(|by| by.as_str()) {
            None | Some(Some("key")) => false,
            Some(Some("value")) => true,
            _ => return fail("dictsort sorts by 'key' or 'value'"),
        };
        let entries = match value {
            Value::Undefined(name) => return undefined(name),
            other => match other.entries() {
                Some(entries) => entries,
                None => return fail(format!("a {} cannot be sorted as a dict", other.type_name())),
            },
        };
        let fold = !case.is_some_and(|case| case.truthy());
        let keyed = entries.into_iter().map(|(key, value)| {
            let by = fold_case(if by_value { &value } else { &key }, fold);
            (by, Value::Tuple(Value::items(vec![key, value])))
        });
        let keyed = keyed.collect();
        self.sorted(keyed, reverse.is_some_and(|v| v.truthy())).map(Value::list)
    }

    /// Values in the order of their keys; equal keys keep their order, in reverse too.
    fn sorted(&mut self, mut keyed: Vec<(Value<'a>, Value<'a>)>, reverse: bool) -> Outcome<Vec<Value<'a>>> {
        let mut failure = None;
        keyed.sort_by(|(a, _), (b, _)| match ops::order(a, b, &self.fuel) {
            Ok(order) => {
                let order = order.unwrap_or(Ordering::Equal);
                if reverse { order.reverse() } else { order }
            }
            Err(error) => {
                failure.get_or_insert(error);
                Ordering::Equal
            }
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(keyed.into_iter().map(|(_, value)| value).collect()),
        }
    }

    fn sort(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [reverse, case, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
        let several = attribute.as_ref().and_then(Value::as_text).filter(|name| name.as_str().contains(','));
        let keyed = match several {
            None => self.keyed(value, attribute.as_ref(), case.as_ref())?,
            Some(names) => {
                let names = names.parts(|names| names.split(',').collect());
                let lists = names.iter().map(|name| self.keyed(value, Some(name), case.as_ref()));
                transposed(iterated(value)?, &lists.collect::<Outcome<Vec<_>>>()?)
            }
        };
        self.sorted(keyed, reverse.is_some_and(|v| v.truthy())).map(Value::list)
    }

    fn keyed(
        &mut self,
        value: &Value<'a>,
        attribute: Option<&Value<'a>>,
        case: Option<&Value<'a>>,
    ) -> Outcome<Vec<(Value<'a>, Value<'a>)>> {
        let fold = !case.is_some_and(Value::truthy);
        let mut keyed = Vec::new();
        for item in iterated(value)? {
            let key = match attribute {
                None | Some(Value::None) => item.clone(),
                Some(attribute) => self.attribute_path(item.clone(), attribute)?,
            };
            keyed.push((fold_case(&key, fold), item));
        }
        Ok(keyed)
    }

    /// `batch`: so many items in each list. `slice`: so many lists.
    fn portions(filter: Filter, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [number, fill] = args.bind("batch and slice", ["number", "fill_with"])?;
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let Some(number @ 1..=MAX_PORTIONS) = number.and_then(|number| number.as_index()) else {
            return fail(format!("batch and slice need a number from 1 to {MAX_PORTIONS}"));
        };
        let (number, items) = (number as usize, iterated(value)?);
        if filter == Filter::Batch {
            let lists = items.chunks(number).map(|items| {
                let mut list = items.to_vec();
                if let Some(fill) = &fill {
                    list.resize(number, fill.clone());
                }
                Value::list(list)
            });
            return Ok(Value::generator(lists.collect()));
        }
        let (each, num_larger) = (items.len() / number, items.len() % number);
        let mut rest = items.into_iter();
        let lists = (0..number).map(|at| {
            let mut list: Vec<Value<'a>> = rest.by_ref().take(each + usize::from(at < num_larger)).collect();
            if at >= num_larger {
                list.extend(fill.clone());
            }
            Value::list(list)
        });
        Ok(Value::generator(lists.collect()))
    }

    fn group_by(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [attribute, default, case] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let Some(attribute) = attribute else { return fail("groupby needs an attribute") };
        let fold = !case.is_some_and(|case| case.truthy());
        let mut keyed = Vec::new();
        for item in iterated(value)? {
            let mut key = self.attribute_path(item.clone(), &attribute)?;
            if let (true, Some(default)) = (key.is_undefined(), &default) {
                key = default.clone();
            }
            keyed.push((fold_case(&key, fold), Value::Tuple(Value::items(vec![key, item]))));
        }
        let mut groups: Vec<(Value<'a>, Value<'a>, Vec<Value<'a>>)> = Vec::new();
        let keys: Vec<Value<'a>> = keyed.iter().map(|(key, _)| key.clone()).collect();
        let order = self.sorted(keys.into_iter().zip((0..).map(Value::Int)).collect(), false)?;
        for at in order.iter().filter_map(Value::as_index) {
            let (folded, pair) = &keyed[at as usize];
            let Some([key, item]) = pair.to_vec().and_then(|pair| <[_; 2]>::try_from(pair).ok()) else { continue };
            match groups.last_mut() {
                Some((last, _, items)) if last.equals(folded, &self.fuel) => items.push(item),
                _ => groups.push((folded.clone(), key, vec![item])),
            }
        }
        let group = |key, items| Value::Tuple(Value::shaped(vec![key, Value::list(items)], Shape::Group));
        Ok(Value::list(groups.into_iter().map(|(_, key, items)| group(key, items)).collect()))
    }

    fn unique(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [case, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
        let keyed = self.keyed(value, attribute.as_ref(), case.as_ref())?;
        let mut seen: Vec<Value<'a>> = Vec::new();
        let mut kept = Vec::new();
        for (key, item) in keyed {
            if !seen.iter().any(|known| known.equals(&key, &self.fuel)) {
                seen.push(key);
                kept.push(item);
            }
        }
        Ok(Value::generator(kept))
    }

    fn extreme(&mut self, value: &Value<'a>, args: Args<'a>, largest: bool) -> Outcome<Value<'a>> {
        let [case, attribute] = args.bind("min and max", ["case_sensitive", "attribute"])?;
        let mut best: Option<(Value<'a>, Value<'a>)> = None;
        for (key, item) in self.keyed(value, attribute.as_ref(), case.as_ref())? {
            let wins = match &best {
                None => true,
                Some((champion, _)) => {
                    let wanted = if largest { Ordering::Greater } else { Ordering::Less };
                    ops::order(&key, champion, &self.fuel)? == Some(wanted)
                }
            };
            if wins {
                best = Some((key, item));
            }
        }
        Ok(best.map_or(Value::Undefined("extreme of nothing"), |(_, item)| item))
    }

    fn sum(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
        let mut total = start.unwrap_or(Value::Int(0));
        if total.as_str().is_some() {
            return fail("sum cannot add texts");
        }
        for item in iterated(value)? {
            let item = match &attribute {
                None | Some(Value::None) => item,
                Some(attribute) => self.attribute_path(item, attribute)?,
            };
            total = ops::binary(BinaryOp::Add, &total, &item, &self.fuel)?;
        }
        Ok(total)
    }

    fn map(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let items = iterated(value)?;
        let mut mapped = Vec::with_capacity(items.len());
        if args.positional.is_empty() {
            let [attribute, default] = args.bind("map", ["attribute", "default"])?;
            let Some(attribute) = attribute else { return fail("map needs a filter or an attribute") };
            for item in items {
                let found = self.attribute_path(item, &attribute)?;
                mapped.push(match &default {
                    Some(default) if found.is_undefined() && !matches!(default, Value::None) => default.clone(),
                    _ => found,
                });
            }
            return Ok(Value::generator(mapped));
        }
        let Some(filter) = args.positional[0].as_str().and_then(Filter::named) else {
            return fail("map names a filter that is not supported");
        };
        for item in items {
            let rest = Args { positional: args.positional[1..].to_vec(), keyword: args.keyword.clone() };
            mapped.push(self.apply_filter(filter, item, rest)?);
        }
        Ok(Value::generator(mapped))
    }

    fn select(&mut self, value: &Value<'a>, args: Args<'a>, keep: bool, by_attribute: bool) -> Outcome<Value<'a>> {
        let mut positional = args.positional.into_iter();
        let attribute = match by_attribute.then(|| positional.next()) {
            None => None,
            Some(Some(attribute)) => Some(attribute),
            Some(None) => return fail("selectattr needs an attribute"),
        };
        let test = match positional.next() {
            None => None,
            Some(name) => match name.as_str().and_then(Test::named) {
                Some(test) => Some(test),
                None => return fail(format!("the test {:?} is not supported", name.as_str().unwrap_or("?"))),
            },
        };
        let rest: Vec<Value<'a>> = positional.collect();
        let mut kept = Vec::new();
        for item in iterated(value)? {
            let subject = match &attribute {
                Some(attribute) => self.attribute_path(item.clone(), attribute)?,
                None => item.clone(),
            };
            let passes = match test {
                Some(test) => {
                    let args = Args { positional: rest.clone(), keyword: args.keyword.clone() };
                    self.apply_test(test, &subject, args)?
                }
                None => subject.truthy(),
            };
            if passes == keep {
                kept.push(item);
            }
        }
        Ok(Value::generator(kept))
    }

    /// `a.b.0` of an item, each part by subscription, as Jinja2's attribute arguments are.
    fn attribute_path(&mut self, item: Value<'a>, path: &Value<'a>) -> Outcome<Value<'a>> {
        if let Some(index) = path.as_index() {
            return self.subscript(&item, &Value::Int(index));
        }
        let Some(path) = path.as_text() else { return fail("an attribute must be a text or an integer") };
        let mut found = item;
        for part in path.parts(|text| text.split('.').collect()) {
            let key = match part.as_str().map(str::parse) {
                Some(Ok(index)) => Value::Int(index),
                _ => part,
            };
            found = self.subscript(&found, &key)?;
        }
        Ok(found)
    }
}

/// Each item with the list of its keys.
fn transposed<'a>(items: Vec<Value<'a>>, keyed: &[Vec<(Value<'a>, Value<'a>)>]) -> Vec<(Value<'a>, Value<'a>)> {
    let keys = |at: usize| keyed.iter().filter_map(|keyed| keyed.get(at)).map(|(key, _)| key.clone()).collect();
    items.into_iter().enumerate().map(|(at, item)| (Value::list(keys(at)), item)).collect()
}

fn fold_case<'a>(value: &Value<'a>, fold: bool) -> Value<'a> {
    match value {
        Value::Str(text) if fold => Value::string(text.as_str().to_lowercase()),
        other => other.clone(),
    }
}

pub(super) fn pairs<'a>(entries: Vec<(Value<'a>, Value<'a>)>) -> Vec<Value<'a>> {
    entries.into_iter().map(|(key, value)| Value::Tuple(Value::items(vec![key, value]))).collect()
}

fn iterated<'a>(value: &Value<'a>) -> Outcome<Vec<Value<'a>>> {
    value.to_vec().map_or_else(|| fail(format!("'{}' object is not iterable", value.type_name())), Ok)
}
