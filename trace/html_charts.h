// Drawings for reports, as inline SVG: plain data in, markup out. Well-formed XML, no scripts; colours come
// from the classes of html_page.cc, so that light and dark follow the reader's browser.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stoker::html {

/// `text` with & < > " made harmless; bytes that XML forbids or that are not UTF-8 become '?'.
std::string escape(std::string_view text);
/// printf of one number.
std::string number(const char* format, double value);

struct Series {
  std::string name;
  std::vector<double> y;  ///< one per x
};
/// Lines over a common x axis; y in percent, the axis fits the data.
std::string line_chart(const std::vector<double>& x, const std::vector<Series>& series,
                       const std::string& x_label);

/// One bar per value, from the left; `titles` are shown when the pointer rests on a bar.
std::string bar_chart(const std::vector<double>& values, const std::vector<std::string>& titles,
                      const std::string& x_label, const std::string& unit);

/// `values`: rows x columns, 0 = nothing. Cells are coloured by the logarithm of value / mean in 9 levels:
/// one path per level, so that 48 x 512 cells stay far below 1 MB.
std::string heat_map(std::size_t rows, std::size_t columns, const std::vector<double>& values,
                     const std::string& row_label, const std::string& column_label);

/// What a layer did, in milliseconds since the step began.
struct WaterfallRow {
  double began = 0, demanded = 0, landed = 0, done = 0;
  double stalled = 0;  ///< drawn as one piece that ends at `landed`
  std::string title;
};
std::string waterfall(const std::vector<WaterfallRow>& rows);

/// A whole document around `body`.
std::string page(const std::string& title, const std::string& body);

}  // namespace stoker::html
