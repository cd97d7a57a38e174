#include "trace/html_charts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace stoker::html {
namespace {

constexpr double kWidth = 1000, kLeft = 50, kRight = 90, kTop = 10;

std::string n(double value) { return number("%.5g", value); }

std::string open_svg(double height, const std::string& label) {
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + n(kWidth) + " " + n(height) +
         "\" role=\"img\" aria-label=\"" + escape(label) + "\">";
}

std::string text(double x, double y, const std::string& anchor, const std::string& content,
                 const std::string& css = "") {
  return "<text" + (css.empty() ? css : " class=\"" + css + "\"") + " x=\"" + n(x) + "\" y=\"" + n(y) +
         "\" text-anchor=\"" + anchor + "\">" + escape(content) + "</text>";
}

std::string rect(const char* css, double x, double y, double width, double height, const std::string& title) {
  return "<rect class=\"" + std::string(css) + "\" x=\"" + n(x) + "\" y=\"" + n(y) + "\" width=\"" +
         n(std::max(0.0, width)) + "\" height=\"" + n(height) + "\">" +
         (title.empty() ? "" : "<title>" + escape(title) + "</title>") + "</rect>";
}

std::string horizontal(double y) {
  return "<path class=\"axis\" d=\"M" + n(kLeft) + " " + n(y) + "H" + n(kWidth - kRight) + "\"/>";
}

/// A round step that gives about five ticks.
double tick_step(double span) {
  if (!(span > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(span / 5)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (span / (power * factor) <= 6) return power * factor;
  return power * 10;
}

/// Ends of lines, apart enough to be read.
std::vector<double> label_places(const std::vector<double>& wanted, double least) {
  std::vector<std::size_t> order(wanted.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return wanted[a] < wanted[b]; });
  std::vector<double> placed = wanted;
  for (std::size_t i = 1; i < order.size(); ++i)
    placed[order[i]] = std::max(placed[order[i]], placed[order[i - 1]] + least);
  return placed;
}

}  // namespace

std::string number(const char* format, double value) {
  std::array<char, 64> out{};
  std::snprintf(out.data(), out.size(), format, value);
  return out.data();
}

std::string line_chart(const std::vector<double>& x, const std::vector<Series>& series,
                       const std::string& x_label) {
  constexpr double kHeight = 380, kBottom = 335;
  double low = 100, high = 0;
  for (const Series& s : series)
    for (const double y : s.y) low = std::min(low, y), high = std::max(high, y);
  const double step = tick_step(high - low);
  low = std::floor(low / step) * step;
  high = std::max(std::ceil(high / step) * step, low + step);
  const double first = x.front(), last = x.back() > first ? x.back() : first + 1;
  const auto px = [&](double v) { return kLeft + (v - first) / (last - first) * (kWidth - kLeft - kRight); };
  const auto py = [&](double v) { return kBottom - (v - low) / (high - low) * (kBottom - kTop); };
  std::string out = open_svg(kHeight, "hit rate over pool size");
  for (double tick = low; tick <= high + step / 2; tick += step)
    out += horizontal(py(tick)) + text(kLeft - 6, py(tick) + 4, "end", number("%.4g %%", tick));
  for (const double v : x) out += text(px(v), kBottom + 18, "middle", number("%.0f", v));
  out += text((kLeft + kWidth - kRight) / 2, kBottom + 38, "middle", x_label);
  std::vector<double> ends;
  for (const Series& s : series) ends.push_back(py(s.y.back()) + 4);
  ends = label_places(ends, 14);
  for (std::size_t i = 0; i < series.size(); ++i) {
    const std::string index = std::to_string(i % 5);
    std::string path, dots;
    for (std::size_t k = 0; k < x.size(); ++k) {
      path += (k == 0 ? "M" : "L") + n(px(x[k])) + " " + n(py(series[i].y[k]));
      dots += "<circle class=\"d" + index + "\" cx=\"" + n(px(x[k])) + "\" cy=\"" + n(py(series[i].y[k])) +
              "\" r=\"4\"><title>" + escape(series[i].name) + number(", %.0f: ", x[k]) +
              number("%.1f %%", series[i].y[k]) + "</title></circle>";
    }
    out += "<path class=\"line s" + index + "\" d=\"" + path + "\"/>" + dots;
    out += text(px(last) + 10, ends[i], "start", series[i].name, "d" + index);
  }
  return out + "</svg>\n";
}

std::string bar_chart(const std::vector<double>& values, const std::vector<std::string>& titles,
                      const std::string& x_label, const std::string& unit) {
  constexpr double kHeight = 240, kBottom = 195;
  const double most = std::max(*std::max_element(values.begin(), values.end()), 1e-9);
  const double step = tick_step(most);
  const double width = (kWidth - kLeft - kRight) / static_cast<double>(values.size());
  const auto py = [&](double v) { return kBottom - v / (most * 1.05) * (kBottom - kTop); };
  std::string out = open_svg(kHeight, unit + " by " + x_label);
  for (double tick = 0; tick <= most * 1.05; tick += step)
    out += horizontal(py(tick)) + text(kLeft - 6, py(tick) + 4, "end", number("%.4g", tick));
  out += text(kWidth - kRight + 6, py(0) + 4, "start", unit);
  const std::size_t every = std::max<std::size_t>(1, values.size() / 12);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double left = kLeft + width * static_cast<double>(i);
    out += rect("bar", left + width * 0.1, py(values[i]), width * 0.8, kBottom - py(values[i]), titles[i]);
    if (i % every == 0) out += text(left + width / 2, kBottom + 18, "middle", std::to_string(i));
  }
  return out + text((kLeft + kWidth - kRight) / 2, kBottom + 38, "middle", x_label) + "</svg>\n";
}

std::string heat_map(std::size_t rows, std::size_t columns, const std::vector<double>& values,
                     const std::string& row_label, const std::string& column_label) {
  constexpr std::size_t kLevels = 9;
  constexpr double kPerLevel = 1.5;  // levels per factor of two; the mean is in the middle
  double sum = 0;
  for (const double v : values) sum += v;
  const double mean = sum / static_cast<double>(std::max<std::size_t>(1, values.size()));
  const auto level_of = [&](double v) -> std::size_t {
    if (!(v > 0)) return 0;
    return static_cast<std::size_t>(std::clamp(5 + std::round(std::log2(v / mean) * kPerLevel), 1.0, 9.0));
  };
  std::array<std::string, kLevels + 1> paths;
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns;) {
      const std::size_t level = level_of(values[r * columns + c]);
      std::size_t end = c + 1;
      while (end < columns && level_of(values[r * columns + end]) == level) ++end;
      if (level > 0)
        paths[level] += "M" + std::to_string(c) + " " + std::to_string(r) + "h" + std::to_string(end - c);
      c = end;
    }
  }
  const double row_height = std::clamp(400.0 / static_cast<double>(rows), 4.0, 24.0);
  const double height = row_height * static_cast<double>(rows);
  std::string out = open_svg(kTop + height + 40, row_label + " x " + column_label);
  out += "<svg class=\"heat\" x=\"" + n(kLeft) + "\" y=\"" + n(kTop) + "\" width=\"" + n(kWidth - kLeft) +
         "\" height=\"" + n(height) + "\" viewBox=\"0 -0.5 " + std::to_string(columns) + " " +
         std::to_string(rows) + "\" preserveAspectRatio=\"none\" shape-rendering=\"crispEdges\">";
  for (std::size_t level = 1; level <= kLevels; ++level)
    if (!paths[level].empty())
      out += "<path class=\"h" + std::to_string(level) + "\" d=\"" + paths[level] + "\"/>";
  out += "</svg>";
  const std::size_t every = std::max<std::size_t>(1, (rows + 11) / 12);
  for (std::size_t r = 0; r < rows; r += every)
    out += text(kLeft - 6, kTop + row_height * (static_cast<double>(r) + 0.5) + 4, "end", std::to_string(r));
  for (std::size_t c = 0; c < columns; c += std::max<std::size_t>(1, (columns + 7) / 8))
    out += text(kLeft + static_cast<double>(c) / static_cast<double>(columns) * (kWidth - kLeft),
                kTop + height + 16, "middle", std::to_string(c));
  return out + text(kLeft, kTop + height + 34, "start", "down: " + row_label + "; across: " + column_label) +
         "</svg>\n";
}

std::string waterfall(const std::vector<WaterfallRow>& rows) {
  const double row_height = std::clamp(500.0 / static_cast<double>(rows.size()), 5.0, 24.0);
  const double bottom = kTop + row_height * static_cast<double>(rows.size());
  const double last = std::max(rows.back().done, 1e-6);
  const auto px = [&](double v) { return kLeft + v / last * (kWidth - kLeft - kRight); };
  std::string out = open_svg(bottom + 40, "one step, layer by layer");
  const std::size_t every = std::max<std::size_t>(1, (rows.size() + 11) / 12);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const WaterfallRow& r = rows[i];
    const double y = kTop + row_height * static_cast<double>(i);
    const double waits = std::max(r.demanded, r.landed - r.stalled);
    const auto piece = [&](const char* css, double from, double to) {
      return to > from ? rect(css, px(from), y, px(to) - px(from), row_height * 0.85, r.title) : "";
    };
    out += piece("mixer", r.began, r.demanded);
    if (r.stalled > 0) {
      out += piece("work", r.demanded, waits) + piece("stall", waits, r.landed) +
             piece("work", r.landed, r.done);
    } else {
      out += piece("work", r.demanded, r.done);
    }
    if (i % every == 0) out += text(kLeft - 6, y + row_height / 2 + 4, "end", std::to_string(i));
  }
  const double step = tick_step(last);
  for (double tick = 0; tick <= last; tick += step)
    out += text(px(tick), bottom + 16, "middle", number("%.4g", tick));
  return out + text(kLeft, bottom + 34, "start", "down: layer; across: ms since the step began") + "</svg>\n";
}

}  // namespace stoker::html
