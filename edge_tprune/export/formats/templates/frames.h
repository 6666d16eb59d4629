// Frames from PPM files, class names, and the best classes printed. Part of a package that edge-tprune exported.

#pragma once
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

using Answer = std::vector<std::pair<int64_t, float>>;  // (class, probability), the most probable first

[[noreturn]] inline void stop(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(2);
}

// The probabilities of one frame's logits. A single one is of a class against its absence.
inline Answer rank(const float* logits, size_t count) {
  if (count == 1) return {{0, static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(logits[0]))))}};
  const float most = *std::max_element(logits, logits + count);
  const double sum = std::accumulate(logits, logits + count, 0.0, [=](double s, float x) { return s + std::exp(x - most); });
  Answer found(count);
  for (size_t i = 0; i < count; ++i) found[i] = {static_cast<int64_t>(i), static_cast<float>(std::exp(logits[i] - most) / sum)};
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return found;
}

// A name for the terminal, with no control characters; those from 128 to 159 are two bytes in UTF-8.
inline std::string printable(std::string text) {
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, '?');
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const auto second = static_cast<unsigned char>(text[i + 1]);
    if (text[i] == '\xc2' && second >= 128 && second < 160) text.replace(i, 2, "?");
  }
  return text;
}

// The stream after the white space and the comments that may come before a number in the head of a PPM file.
inline std::istream& at_number(std::istream& stream) {
  for (std::string comment; (stream >> std::ws) && stream.peek() == '#';) std::getline(stream, comment);
  return stream;
}

inline std::vector<uint8_t> read_frame(const std::string& name, int64_t height, int64_t width) {
  const std::string file = printable(name);
  std::ifstream stream(name, std::ios::binary);
  if (!stream) stop(file + " cannot be read: " + std::strerror(errno));
  std::string kind(2, ' ');
  int64_t w = 0, h = 0, most = 0;
  stream.read(&kind[0], 2);
  if (!(at_number(stream) >> w) || !(at_number(stream) >> h) || !(at_number(stream) >> most) || kind != "P6" || most != 255) {
    stop(file + " is no binary PPM file of 8 bits");
  }
  if (h != height || w != width) {
    stop(file + " has " + std::to_string(w) + " x " + std::to_string(h) + " pixels, and the graph takes " + std::to_string(width) + " x " +
         std::to_string(height));
  }
  stream.get();
  std::vector<uint8_t> pixels(static_cast<size_t>(h * w * 3));
  if (!stream.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()))) stop(file + " is cut off");
  if (stream.peek() != std::ifstream::traits_type::eof()) stop(file + " holds more than one frame");
  return pixels;
}

// Prints the best classes of the frames in the files that are named. A model has height(), width() and operator()(frame).
template <typename Model>
int classify(const Model& model, const std::string& folder, int count, char** arguments) {
  if (count < 2) stop("usage: " + printable(arguments[0]) + " FRAME.ppm ...");
  std::vector<std::string> labels;
  std::ifstream stream(folder + "/labels.txt");
  for (std::string line; std::getline(stream, line);) labels.push_back(line);
  for (int i = 1; i < count; ++i) {
    std::printf("%s\n", printable(arguments[i]).c_str());
    const Answer best = model(read_frame(arguments[i], model.height(), model.width()));
    for (size_t k = 0; k < std::min<size_t>(5, best.size()); ++k) {
      const auto place = static_cast<size_t>(best[k].first);
      if (place >= labels.size()) stop("labels.txt has " + std::to_string(labels.size()) + " lines, fewer than the network has classes");
      std::printf("  %6.1f%%  %s\n", 100.0 * best[k].second, labels[place].c_str());
    }
  }
  if (std::fflush(stdout) != 0) stop("the answers cannot be written");
  return 0;
}

inline std::string model_folder() {
  const char* folder = std::getenv("MODEL_FOLDER");
  return folder == nullptr ? "." : folder;
}
