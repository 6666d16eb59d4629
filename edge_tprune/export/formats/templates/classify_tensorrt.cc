// Prints the best classes of frames: ./classify golden.ppm [more.ppm]. Needs TensorRT 8.5 or newer and CUDA, and nothing of edge-tprune.
// Frames are binary PPM files (P6, 8 bits) of the size that the graph takes; the graph resizes, crops and normalises them.
// The engine file comes first, on the machine that runs it: trtexec --onnx=model.onnx --saveEngine=model.plan

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "frames.h"

static void check(cudaError_t error) {
  if (error != cudaSuccess) stop(std::string("CUDA: ") + cudaGetErrorString(error));
}

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", text);
  }
};

// One input or output of the engine: its memory here and on the GPU.
struct Tensor {
  std::string name;
  nvinfer1::DataType type;
  std::vector<int64_t> shape;
  std::vector<uint8_t> host;
  void* device = nullptr;
  bool input = false;
};

// The network in an execution context of its own.
class Model {
 public:
  explicit Model(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> plan((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    if (plan.empty()) stop(file + " is missing: trtexec --onnx=model.onnx --saveEngine=model.plan");
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) stop("TensorRT cannot start");
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) stop(file + " is of another TensorRT or GPU: build it here");
    context_.reset(engine_->createExecutionContext());
    if (!context_) stop("there is no memory left to run " + file);
    check(cudaStreamCreate(&stream_));
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      Tensor tensor;
      tensor.name = name;
      tensor.type = engine_->getTensorDataType(name);
      tensor.input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      const nvinfer1::Dims shape = engine_->getTensorShape(name);
      size_t bytes = size_of(tensor.type);
      for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
        tensor.shape.push_back(shape.d[axis]);
        bytes *= static_cast<size_t>(shape.d[axis]);
      }
      tensor.host.resize(bytes);
      check(cudaMalloc(&tensor.device, bytes));
      if (!context_->setTensorAddress(name, tensor.device)) stop("TensorRT refuses " + tensor.name);
      (tensor.input ? inputs_ : outputs_).push_back(tensor);
    }
    if (inputs_.size() != 1 || inputs_[0].shape.size() != 4 || inputs_[0].shape[3] != 3 || size_of(inputs_[0].type) != 1) {
      stop("the graph takes no frames (images, height, width, 3)");
    }
  }

  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  ~Model() {
    for (Tensor& tensor : inputs_) cudaFree(tensor.device);
    for (Tensor& tensor : outputs_) cudaFree(tensor.device);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  int64_t height() const { return inputs_[0].shape[1]; }
  int64_t width() const { return inputs_[0].shape[2]; }

  // (class, probability) of one frame of height x width x 3 bytes, the most probable first.
  Answer operator()(const std::vector<uint8_t>& frame) const {
    Tensor& image = inputs_[0];
    std::copy(frame.begin(), frame.end(), image.host.begin());
    check(cudaMemcpyAsync(image.device, image.host.data(), image.host.size(), cudaMemcpyHostToDevice, stream_));
    if (!context_->enqueueV3(stream_)) stop("TensorRT could not run the network");
    for (Tensor& output : outputs_) {
      check(cudaMemcpyAsync(output.host.data(), output.device, output.host.size(), cudaMemcpyDeviceToHost, stream_));
    }
    check(cudaStreamSynchronize(stream_));
    const auto count = static_cast<size_t>(outputs_[0].shape.back());
    if (outputs_.size() == 1) return rank(reinterpret_cast<const float*>(outputs_[0].host.data()), count);
    const Tensor& scores = find("probabilities");  // the graph has chosen
    const Tensor& classes = find("classes");
    Answer found(count);
    for (size_t i = 0; i < count; ++i) {
      const bool wide = size_of(classes.type) == 8;  // TensorRT 10 has 64-bit integers, older ones give 32
      const int64_t number = wide ? reinterpret_cast<const int64_t*>(classes.host.data())[i]
                                  : reinterpret_cast<const int32_t*>(classes.host.data())[i];
      found[i] = {number, reinterpret_cast<const float*>(scores.host.data())[i]};
    }
    return found;
  }

 private:
  static size_t size_of(nvinfer1::DataType type) {
    switch (static_cast<int32_t>(type)) {
      case 0:  // float32
      case 3:  // int32
        return 4;
      case 5:  // uint8
        return 1;
      case 8:  // int64
        return 8;
      default:
        stop("the engine has inputs or outputs of a type that this program does not know");
    }
  }

  const Tensor& find(const std::string& name) const {
    for (const Tensor& output : outputs_) {
      if (output.name == name) return output;
    }
    stop("the engine has no output " + name);
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  mutable std::vector<Tensor> inputs_, outputs_;
  cudaStream_t stream_ = nullptr;
};

int main(int count, char** arguments) {
  const std::string folder = model_folder();
  return classify(Model(folder + "/model.plan"), folder, count, arguments);
}
