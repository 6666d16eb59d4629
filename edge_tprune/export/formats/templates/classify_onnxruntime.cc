// Prints the best classes of frames: ./classify golden.ppm [more.ppm]. Needs ONNX Runtime's C API, and nothing of edge-tprune.
// Frames are binary PPM files (P6, 8 bits) of the size that the graph takes; the graph resizes, crops and normalises them.

#include <onnxruntime_c_api.h>

#include "frames.h"

static const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus* status) {
  if (status != nullptr) stop(api->GetErrorMessage(status));
}

// The network in a session of its own.
class Model {
 public:
  explicit Model(const std::string& file) {
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "classify", &env_));
    OrtSessionOptions* options = nullptr;
    check(api->CreateSessionOptions(&options));
    check(api->CreateSession(env_, file.c_str(), options, &session_));
    api->ReleaseSessionOptions(options);
    check(api->GetAllocatorWithDefaultOptions(&allocator_));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    char* name = nullptr;
    check(api->SessionGetInputName(session_, 0, allocator_, &name));
    input_ = name;
    size_t outputs = 0;
    check(api->SessionGetOutputCount(session_, &outputs));
    for (size_t i = 0; i < outputs; ++i) {
      check(api->SessionGetOutputName(session_, i, allocator_, &name));
      outputs_.push_back(name);
    }
    OrtTypeInfo* type = nullptr;
    check(api->SessionGetInputTypeInfo(session_, 0, &type));
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api->CastTypeInfoToTensorInfo(type, &info));
    size_t axes = 0;
    check(api->GetDimensionsCount(info, &axes));
    shape_.resize(axes);
    check(api->GetDimensions(info, shape_.data(), axes));
    api->ReleaseTypeInfo(type);
    if (axes != 4 || shape_[3] != 3) stop("the graph takes no frames (images, height, width, 3)");
  }

  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  ~Model() {
    api->ReleaseMemoryInfo(memory_);
    api->ReleaseSession(session_);
    api->ReleaseEnv(env_);
  }

  int64_t height() const { return shape_[1]; }
  int64_t width() const { return shape_[2]; }

  // (class, probability) of one frame of height x width x 3 bytes, the most probable first.
  Answer operator()(const std::vector<uint8_t>& frame) const {
    std::vector<uint8_t> batch(static_cast<size_t>(shape_[0] * shape_[1] * shape_[2] * 3));
    std::copy(frame.begin(), frame.end(), batch.begin());
    OrtValue* image = nullptr;
    check(api->CreateTensorWithDataAsOrtValue(memory_, batch.data(), batch.size(), shape_.data(), shape_.size(),
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
    std::vector<const char*> names;
    for (const std::string& name : outputs_) names.push_back(name.c_str());
    std::vector<OrtValue*> values(names.size(), nullptr);
    const char* input = input_.c_str();
    const OrtValue* given = image;
    check(api->Run(session_, nullptr, &input, &given, 1, names.data(), names.size(), values.data()));
    const auto count = static_cast<size_t>(length(values[0]) / shape_[0]);
    float* scores = nullptr;
    check(api->GetTensorMutableData(values[0], reinterpret_cast<void**>(&scores)));
    Answer found(count);
    if (values.size() == 2) {  // probabilities and classes: the graph has chosen
      int64_t* classes = nullptr;
      check(api->GetTensorMutableData(values[1], reinterpret_cast<void**>(&classes)));
      for (size_t i = 0; i < count; ++i) found[i] = {classes[i], scores[i]};
    } else {
      found = rank(scores, count);
    }
    for (OrtValue* value : values) api->ReleaseValue(value);
    api->ReleaseValue(image);
    return found;
  }

 private:
  static int64_t length(const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api->GetTensorTypeAndShape(value, &info));
    size_t count = 0;
    check(api->GetTensorShapeElementCount(info, &count));
    api->ReleaseTensorTypeAndShapeInfo(info);
    return static_cast<int64_t>(count);
  }

  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::string input_;
  std::vector<std::string> outputs_;
  std::vector<int64_t> shape_;
};

int main(int count, char** arguments) {
  const std::string folder = model_folder();
  return classify(Model(folder + "/model.onnx"), folder, count, arguments);
}
