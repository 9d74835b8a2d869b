// Provenance, limits and errors of rendering.
#include "tokenizer/jinja/jinja.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace shoal::jinja {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

/// Text with what came from input in [brackets], or the error.
std::string Render(const std::string& source, const Json& input = Json::object(),
                   const Json& trusted = Json::object(), const Limits& limits = {}) {
  const auto parsed = Template::Parse(source);
  if (!parsed.ok()) return parsed.status().ToString();
  const auto segments = (*parsed)->Render(trusted, input, limits);
  if (!segments.ok()) return segments.status().ToString();
  std::string text;
  for (const Segment& segment : *segments) {
    text += segment.from_input ? "[" + segment.text + "]" : segment.text;
  }
  return text;
}

struct ProvenanceCase {
  std::string expression;
  std::string expected;
};

class Provenance : public testing::TestWithParam<ProvenanceCase> {};

TEST_P(Provenance, FollowsEveryCharacter) {
  const Json input = {
      {"x", "Ab c"},           {"n", 3},          {"list", {"p", "q"}},  {"empty", ""},
      {"m", {{"k", "v\"\n"}}}, {"lines", "a\nb"}, {"tagged", "<t>u</t>"}};
  const Json trusted = {{"bos", "<s>"}};
  EXPECT_EQ(Render("{{ " + GetParam().expression + " }}", input, trusted), GetParam().expected)
      << GetParam().expression;
}

INSTANTIATE_TEST_SUITE_P(
    All, Provenance,
    testing::Values(
        ProvenanceCase{"bos ~ x ~ 'end'", "<s>[Ab c]end"},
        ProvenanceCase{"bos + x + bos", "<s>[Ab c]<s>"}, ProvenanceCase{"x + x", "[Ab cAb c]"},
        ProvenanceCase{"('_' + x + '_')[1:]", "[Ab c]_"},
        ProvenanceCase{"('_' + x + '_')[::-1]", "_[c bA]_"}, ProvenanceCase{"('_' + x)[0]", "_"},
        ProvenanceCase{"('_' + x)[1]", "[A]"}, ProvenanceCase{"(' ' + x + ' ') | trim", "[Ab c]"},
        ProvenanceCase{"('z' + x).strip('z')", "[Ab c]"},
        ProvenanceCase{"('z' + x) | upper", "Z[AB C]"},
        ProvenanceCase{"('z' ~ x).title()", "Z[ab C]"},
        ProvenanceCase{"('z' ~ x) | capitalize", "Z[ab c]"},
        ProvenanceCase{"x | replace('b', '-')", "[A]-[ c]"},
        ProvenanceCase{"'a-b' | replace('-', x)", "a[Ab c]b"},
        ProvenanceCase{"(bos ~ x).replace(x, '')", "<s>"},
        ProvenanceCase{"('k=' ~ x).split('=') | join('|')", "k|[Ab c]"},
        ProvenanceCase{"list | join(', ')", "[p], [q]"},
        ProvenanceCase{"', '.join(list)", "[p], [q]"},
        ProvenanceCase{"x.join(['1', '2'])", "1[Ab c]2"},
        ProvenanceCase{"m | tojson", "{\"[k]\": \"[v\\\"\\n]\"}"},
        ProvenanceCase{"{'a': x, 'b': n} | tojson", "{\"a\": \"[Ab c]\", \"b\": [3]}"},
        ProvenanceCase{"[x, n, 1]", "['[Ab c]', [3], 1]"},
        ProvenanceCase{"'%s!%d' % (x, n)", "[Ab c]![3]"},
        ProvenanceCase{"'{}-{}'.format('k', x)", "k-[Ab c]"},
        ProvenanceCase{"x.format('k')", "[Ab c]"}, ProvenanceCase{"lines | indent(1)", "[a]\n [b]"},
        ProvenanceCase{"'<' ~ tagged | e", "<[&lt;t&gt;u&lt;/t&gt;]"},
        ProvenanceCase{"tagged.split('</t>')[0] + '</t>'", "[<t>u]</t>"},
        ProvenanceCase{"x * 2", "[Ab cAb c]"}, ProvenanceCase{"'ab' * n", "ababab"},
        ProvenanceCase{"n + 1", "[4]"}, ProvenanceCase{"-n", "[-3]"},
        ProvenanceCase{"x | length", "[4]"}, ProvenanceCase{"list | length", "[2]"},
        ProvenanceCase{"x == 'y'", "[False]"}, ProvenanceCase{"x is string", "[True]"},
        ProvenanceCase{"not x", "[False]"}, ProvenanceCase{"'12' ~ (x | int)", "12[0]"},
        ProvenanceCase{"range(n) | join", "[012]"}, ProvenanceCase{"x | list | first", "[A]"},
        ProvenanceCase{"(x | list + ['z']) | sort | join", "[ Abc]z"},
        ProvenanceCase{"m.items() | first | first", "[k]"}, ProvenanceCase{"m | list", "['[k]']"},
        ProvenanceCase{"'yes' if x else 'no'", "yes"},
        ProvenanceCase{"{'Ab c': 'known'}[x]", "known"},
        ProvenanceCase{"empty ~ 'a' ~ empty ~ 'b'", "ab"},
        ProvenanceCase{"x | default('d')", "[Ab c]"}, ProvenanceCase{"strftime_now(x)", "[Ab c]"},
        ProvenanceCase{"[x] | map('replace', 'b', '_') | first", "[A]_[ c]"}));

TEST(Template, KeepsOriginThroughBlocksAndMacros) {
  const Json input = {{"x", "in"}};
  EXPECT_EQ(Render("{% set b %}a{{ x }}{% endset %}{{ b }}", input), "a[in]");
  EXPECT_EQ(Render("{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(x) | upper }}", input), "<[IN]>");
  EXPECT_EQ(Render("{% filter upper %}a{{ x }}{% endfilter %}", input), "A[IN]");
  EXPECT_EQ(Render("{% set ns = namespace(v=x) %}{{ ns.v }}", input), "[in]");
  EXPECT_EQ(Render("{% for c in x %}{{ c }}-{% endfor %}", input), "[i]-[n]-");
}

TEST(Template, TrustedVariablesWinOverInputOfTheSameName) {
  EXPECT_EQ(Render("{{ bos_token }}", {{"bos_token", "forged"}}, {{"bos_token", "<s>"}}), "<s>");
}

TEST(Template, MergesNeighbouringTextOfOneOrigin) {
  const auto parsed = Template::Parse("a{{ 'b' }}{{ x }}{{ x }}c");
  ASSERT_TRUE(parsed.ok());
  const auto segments = (*parsed)->Render(Json::object(), {{"x", "!"}}, Limits());
  ASSERT_TRUE(segments.ok());
  ASSERT_EQ(segments->size(), 3);
  EXPECT_EQ((*segments)[0].text, "ab");
  EXPECT_EQ((*segments)[1].text, "!!");
}

TEST(Template, AppendsToLists) {
  EXPECT_EQ(Render("{% set l = [] %}{% set _ = l.append(1) %}{% set _ = l.append('a') %}{{ l }}"),
            "[1, 'a']");
}

TEST(Template, PassesGenerationBlocksThrough) {
  EXPECT_EQ(Render("a{% generation %}b{{ 1 }}{% endgeneration %}c"), "ab1c");
}

TEST(Template, TellsTheTime) {
  EXPECT_EQ(Render("{{ strftime_now('%Y') | length }}{{ strftime_now('%%') }}"), "4%");
}

TEST(Template, RendersTwiceAlike) {
  const auto parsed =
      Template::Parse("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}");
  ASSERT_TRUE(parsed.ok());
  for (int i = 0; i < 2; ++i) {
    const auto segments = (*parsed)->Render(Json::object(), Json::object(), Limits());
    ASSERT_TRUE(segments.ok());
    EXPECT_EQ((*segments)[0].text, "1");
  }
}

TEST(Template, NamesLineAndConstructItCannotRead) {
  EXPECT_THAT(Render("a\n\n{% include 'x' %}"),
              HasSubstr("line 3: the statement 'include' is not supported"));
  EXPECT_THAT(Render("a\n{{ x | frob }}"), HasSubstr("line 2: there is no filter 'frob'"));
  EXPECT_THAT(Render("{{ x is frob }}"), HasSubstr("line 1: there is no test 'frob'"));
  EXPECT_THAT(Render("{% for x in y recursive %}{% endfor %}"), HasSubstr("'recursive'"));
  EXPECT_THAT(Render("{{ f(*x) }}"), HasSubstr("unpacking arguments"));
  EXPECT_THAT(Render("{% if x %}"), HasSubstr("expected 'endif', found the end of the template"));
  EXPECT_THAT(Render("{% break %}"), HasSubstr("outside a loop"));
  EXPECT_THAT(Render("{{ 9223372036854775808 }}"), HasSubstr("beyond 64 bits"));
  EXPECT_THAT(Render("{{ '\\ud800' }}"), HasSubstr("U+D800"));
}

TEST(Template, NamesTheLineOfARenderingError) {
  EXPECT_THAT(Render("a\nb\n{{ x.y }}"), HasSubstr("INVALID_ARGUMENT: line 3: 'x' is undefined"));
  EXPECT_THAT(Render("{% for i in [1] %}\n{{ raise_exception('no') }}{% endfor %}"),
              HasSubstr("INVALID_ARGUMENT: line 2: no"));
}

TEST(Template, RefusesIntegersBeyond64Bits) {
  for (const char* expression :
       {"9223372036854775807 + 1", "-9223372036854775807 - 2", "9223372036854775807 * 2", "2 ** 63",
        "10 ** 1000000000", "(-9223372036854775807 - 1) // -1", "-(-9223372036854775807 - 1)",
        "(-9223372036854775807 - 1) | abs", "1e300 | int", "'99999999999999999999' | int"}) {
    EXPECT_THAT(Render(std::string("{{ ") + expression + " }}"), HasSubstr("beyond 64 bits"))
        << expression;
  }
  EXPECT_EQ(Render("{{ (-9223372036854775807 - 1) % -1 }}"), "0");
  EXPECT_THAT(Render("{{ x }}", {{"x", 18446744073709551615ULL}}), HasSubstr("beyond 64 bits"));
}

class Exhausting : public testing::TestWithParam<std::string> {};

TEST_P(Exhausting, EndsInACleanError) {
  const Limits limits{.max_steps = 100'000, .max_output_bytes = 1 << 20};
  EXPECT_THAT(Render(GetParam(), Json::object(), Json::object(), limits).substr(0, 100),
              StartsWith("RESOURCE_EXHAUSTED: line 1: "))
      << GetParam();
}

INSTANTIATE_TEST_SUITE_P(
    All, Exhausting,
    testing::Values(
        "{% for i in range(10**9) %}{% endfor %}", "{{ range(10**18) | list }}",
        "{{ 'a' * 10**9 }}", "{{ 'a' * 9223372036854775807 }}", "{{ [0] * 10**9 }}",
        "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(l=[0]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
        "{% endfor %}",
        "{% set ns = namespace(l=[0]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l == ns.l | list }}",
        "{% set ns = namespace(l=[0]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}{{ ns.l }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        "{% set l = [] %}{% set m = [l] %}{% set _ = l.append(m) %}{{ l == m }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
        "{% set s = 'a' * 10**5 %}{{ s | replace('a', s) }}", "{{ (['a' * 10**5] * 99) | join }}",
        "{{ (['a' * 10**5] * 99) | tojson }}", "{{ ('\\n' * 10**5) | indent(10**5, true, true) }}",
        "{{ 'a' | indent(10**12) }}", "{{ ('a\\n' * 10**5) | indent(10**5) }}",
        "{{ [1] | tojson(indent=10**12) }}", "{{ ('{0}' * 20).format('a' * 10**5) }}",
        "{{ [1, 2] | batch(10**9, 0) | list }}",
        "{% set s = 'a' * 10**5 %}{% for i in range(10**5) %}{% if 'b' in s %}{% endif %}"
        "{% endfor %}"));

TEST(Template, LimitsTheOutput) {
  const Limits limits{.max_steps = 1000, .max_output_bytes = 10};
  EXPECT_EQ(Render("{{ 'a' * 10 }}", Json::object(), Json::object(), limits), "aaaaaaaaaa");
  EXPECT_THAT(Render("{{ 'a' * 10 }}b", Json::object(), Json::object(), limits),
              StartsWith("RESOURCE_EXHAUSTED"));
}

TEST(Template, LimitsNestingOfSyntax) {
  const auto nested = [](const std::string& open, const std::string& close) {
    std::string source;
    for (int i = 0; i < 20000; ++i) source += open;
    for (int i = 0; i < 20000; ++i) source += close;
    return source;
  };
  EXPECT_THAT(Render("{{ " + nested("(", ")") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ " + nested("[", "]") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ " + nested("-", "1") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ " + nested("not ", "") + " 1 }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render(nested("{% if 1 %}", "{% endif %}")), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ 1" + nested(" + 1", "") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ x" + nested(".x", "") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ 1" + nested("|abs", "") + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(Render("{{ 1" + nested(" if 1 else 1", "") + " }}"), HasSubstr("nested more than"));
}

TEST(Template, LimitsNestingOfInput) {
  Json nested = 1;
  for (int i = 0; i < 1000; ++i) nested = Json::array({nested});
  EXPECT_THAT(Render("{{ x }}", {{"x", nested}}), HasSubstr("RESOURCE_EXHAUSTED"));
}

TEST(Template, RefusesAHugeSource) {
  EXPECT_THAT(Render(std::string(2 << 20, 'a')), HasSubstr("at most 1048576 are read"));
}

TEST(Template, KeepsBytesThatAreNotUtf8) {
  EXPECT_EQ(Render("\xFF{{ x[0] }}{{ x | length }}", {{"x", "\xE4\xBD"}}),
            "\xFF[\xE4"
            "2]");
}

}  // namespace
}  // namespace shoal::jinja
