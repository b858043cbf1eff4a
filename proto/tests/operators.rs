//! The schemas are consistent, and the page about the operators is generated from them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_proto::operators::{
    Arity, DOMAIN, FUSED_SCHEMAS, OperandSchema, Repeat, ResultShape, SCHEMAS, Schema, VERSION,
};
use std::{collections::HashSet, fmt::Write, fs, path::Path};

fn schemas() -> impl Iterator<Item = &'static Schema> {
    SCHEMAS.into_iter().chain(FUSED_SCHEMAS)
}

#[test]
fn names_are_unique_and_refer_to_something() {
    let names: HashSet<&str> = schemas().map(|schema| schema.name).collect();
    assert_eq!(names.len(), schemas().count());
    for schema in schemas() {
        assert_eq!((schema.domain, schema.version), (DOMAIN, VERSION));
        let mut known = HashSet::new();
        let fixed = schema.operands.iter().map(|operand| operand.name);
        let groups = schema.groups.iter().map(|group| group.name);
        let names = fixed.chain(groups).chain(schema.results.iter().map(|result| result.name));
        names.for_each(|name| assert!(known.insert(name), "{}: `{name}` twice", schema.name));
        let dimensions: HashSet<&str> = schema.dimensions.iter().map(|dimension| dimension.name).collect();
        assert_eq!(dimensions.len(), schema.dimensions.len(), "{}", schema.name);
        for operand in schema.operands.iter().chain(schema.groups.iter().flat_map(|group| group.operands)) {
            for name in operand.shape.iter().flat_map(|axis| axis.dimensions) {
                assert!(dimensions.contains(name), "{}: `{}` has `{name}`", schema.name, operand.name);
            }
        }
        for group in schema.groups {
            assert!(group.operands.iter().all(|operand| operand.arity == Arity::Required), "{}", group.name);
            if let Repeat::Attribute(name) = group.repeat {
                assert!(schema.attribute(name).is_some(), "{}: no attribute `{name}`", schema.name);
            }
        }
        for result in schema.results {
            match result.shape {
                ResultShape::Like(like) => {
                    let like = &schema.operands[schema.operand(like).unwrap()];
                    // A runtime that copies the type along with the shape is right.
                    assert_eq!((like.arity, like.dtype), (Arity::Required, result.dtype), "{}", schema.name);
                }
                ResultShape::Axes(axes) => {
                    let mut names = axes.iter().flat_map(|axis| axis.dimensions);
                    assert!(names.all(|name| dimensions.contains(name)), "{}: {}", schema.name, result.name);
                }
            }
        }
        if let Some(repeated) = schema.result_group {
            let group = &schema.groups[schema.group(repeated.group).unwrap()];
            for result in repeated.results {
                let ResultShape::Like(like) = result.shape else { panic!("{}: {}", schema.name, result.name) };
                assert_eq!(group.operands[group.operand(like).unwrap()].dtype, result.dtype, "{}", schema.name);
            }
        }
    }
}

#[test]
fn descriptions_are_sentences() {
    for schema in schemas() {
        let operands = schema.operands.iter().chain(schema.groups.iter().flat_map(|group| group.operands));
        let descriptions = operands
            .map(|operand| operand.description)
            .chain(schema.attributes.iter().map(|attribute| attribute.description))
            .chain(schema.dimensions.iter().map(|dimension| dimension.description))
            .chain(schema.results.iter().map(|result| result.description))
            .chain(schema.result_group.iter().flat_map(|group| group.results).map(|result| result.description))
            .chain([schema.description]);
        for description in descriptions {
            let starts = description.starts_with(|first: char| first.is_uppercase());
            assert!(starts && description.ends_with('.'), "{}: {description:?}", schema.name);
        }
    }
}

fn operand(page: &mut String, name: &str, arity: &str, operand: &OperandSchema) {
    let shape = operand.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    writeln!(page, "| `{name}` | {} | `[{shape}]` | {arity} | {} |", operand.dtype, operand.description).unwrap();
}

/// What the schema says, as Markdown.
fn section(schema: &Schema) -> String {
    let mut page = String::new();
    writeln!(page, "{}\n\n    {schema}\n", schema.description).unwrap();
    if !schema.attributes.is_empty() {
        writeln!(page, "| attribute | value | meaning |\n|---|---|---|").unwrap();
        for attribute in schema.attributes {
            writeln!(page, "| `{}` | {} | {} |", attribute.name, attribute.kind, attribute.description).unwrap();
        }
        writeln!(page).unwrap();
    }
    writeln!(page, "| operand | type | shape | arity | meaning |\n|---|---|---|---|---|").unwrap();
    for declared in schema.operands {
        let arity = if declared.arity == Arity::Optional { "optional" } else { "required" };
        operand(&mut page, declared.name, arity, declared);
    }
    for group in schema.groups {
        let times = match group.repeat {
            Repeat::Attribute(name) => format!("`{name}` times"),
            Repeat::Rest { minimum } => format!("{minimum} or more times"),
        };
        let arity = if group.arity == Arity::Optional { format!("{times}, or none at all") } else { times };
        for member in group.operands {
            let name = group.operand_name(0, member).replacen("_0", "_i", 1);
            operand(&mut page, &name, &arity, member);
        }
    }
    writeln!(page, "\n| result | type | shape | meaning |\n|---|---|---|---|").unwrap();
    let repetition = |name: &str| name.replacen("_0", "_i", 1);
    let like_of = |like: &str| {
        let group = schema.result_group.map(|results| &schema.groups[schema.group(results.group).unwrap()]);
        group.map_or_else(
            || like.to_owned(),
            |group| {
                let operand = &group.operands[group.operand(like).unwrap()];
                repetition(&group.operand_name(0, operand))
            },
        )
    };
    for position in 0..schema.result_count(1) {
        let (result, repeated) = schema.result_at(position).unwrap();
        let name = schema.result_name(position);
        let name = if repeated.is_some() { repetition(&name) } else { name };
        let shape = match result.shape {
            ResultShape::Like(like) if repeated.is_some() => format!("that of `{}`", like_of(like)),
            ResultShape::Like(like) => format!("that of `{like}`"),
            ResultShape::Axes(axes) => {
                let axes: Vec<String> = axes.iter().map(ToString::to_string).collect();
                format!("`[{}]`", axes.join(", "))
            }
        };
        writeln!(page, "| `{name}` | {} | {shape} | {} |", result.dtype, result.description).unwrap();
    }
    writeln!(page, "\n| dimension | least | meaning |\n|---|---|---|").unwrap();
    for dimension in schema.dimensions {
        writeln!(page, "| `{}` | {} | {} |", dimension.name, dimension.minimum, dimension.description).unwrap();
    }
    let types: Vec<&str> = schema.activations.iter().map(|dtype| dtype.name()).collect();
    writeln!(page, "\nT is the type of the call's activations: {}.", types.join(", ")).unwrap();
    page
}

#[test]
fn the_page_about_the_operators_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operators.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut current = page.clone();
    for schema in schemas() {
        let (begin, end) = (format!("<!-- schema {} -->\n", schema.name), format!("<!-- end {} -->\n", schema.name));
        let from = current.find(&begin).unwrap_or_else(|| panic!("{}: no `{begin}`", path.display())) + begin.len();
        let length = current[from..].find(&end).unwrap_or_else(|| panic!("{}: no `{end}`", path.display()));
        current.replace_range(from..from + length, &section(schema));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &current).unwrap();
        return;
    }
    assert!(page == current, "{}: out of date; run this test with UPDATE_DOCS=1", path.display());
}
