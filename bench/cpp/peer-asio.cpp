// Echo server on asio (standalone): one io_context that all workers run, as
// asio's own multi-threaded servers have it.
//
// A session per connection with a buffer of its own: async_read_some, then
// async_write. One operation is pending at a time, so no strand is needed,
// and asio recycles the memory of its operations.
#include <asio.hpp>

#include <sys/resource.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using asio::ip::tcp;

namespace {

constexpr int backlog_connections = 4096;
constexpr std::chrono::milliseconds stall_time{10};

struct options {
    tcp::endpoint listen{asio::ip::address_v4::loopback(), 0};
    int workers = 1;
    std::size_t buffer_bytes = 65536;
    bool stall_marks = false;
};

void handle(char first) {
    switch (static_cast<unsigned char>(first)) {
    case 0xF1:
        std::this_thread::sleep_for(stall_time);
        break;
    case 0xF2: {
        auto start = std::chrono::steady_clock::now();
        while (std::chrono::steady_clock::now() - start < stall_time) {
        }
        break;
    }
    default:
        break;
    }
}

class session : public std::enable_shared_from_this<session> {
public:
    session(tcp::socket socket, const options &options)
        : socket_(std::move(socket)), buffer_(new char[options.buffer_bytes]),
          buffer_bytes_(options.buffer_bytes), stall_marks_(options.stall_marks) {}

    void read() {
        socket_.async_read_some(
            asio::buffer(buffer_.get(), buffer_bytes_),
            [self = shared_from_this()](std::error_code error, std::size_t length) {
                if (!error) self->write(length);
            });
    }

private:
    void write(std::size_t length) {
        if (stall_marks_) handle(buffer_[0]);
        asio::async_write(socket_, asio::buffer(buffer_.get(), length),
                          [self = shared_from_this()](std::error_code error, std::size_t) {
                              if (!error) self->read();
                          });
    }

    tcp::socket socket_;
    std::unique_ptr<char[]> buffer_; // not cleared: nobody reads what was not received
    std::size_t buffer_bytes_;
    bool stall_marks_;
};

void accept(tcp::acceptor &acceptor, const options &options) {
    acceptor.async_accept([&](std::error_code error, tcp::socket socket) {
        if (!error) {
            socket.set_option(tcp::no_delay(true), error);
            std::make_shared<session>(std::move(socket), options)->read();
        }
        accept(acceptor, options);
    });
}

options parse(int count, char **arguments) {
    options parsed;
    for (int i = 1; i < count; i++) {
        std::string name = arguments[i], value = i + 1 < count ? arguments[i + 1] : "";
        if (name == "--stall-marks") {
            parsed.stall_marks = true;
            continue;
        } else if (name == "--workers") {
            parsed.workers = std::stoi(value);
        } else if (name == "--buffer-bytes") {
            parsed.buffer_bytes = std::stoul(value);
        } else if (name == "--listen") {
            auto colon = value.rfind(':');
            parsed.listen = {asio::ip::make_address(value.substr(0, colon)),
                             static_cast<unsigned short>(std::stoi(value.substr(colon + 1)))};
        } else {
            throw std::invalid_argument("unknown option " + name);
        }
        i++;
    }
    return parsed;
}

} // namespace

int main(int count, char **arguments) try {
    const options options = parse(count, arguments);
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);

    // The hint lets a single-threaded context leave out its locks' contention
    // paths; it does not change what is correct.
    asio::io_context context(options.workers);
    tcp::acceptor acceptor(context);
    acceptor.open(options.listen.protocol());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(options.listen);
    acceptor.listen(backlog_connections);
    accept(acceptor, options);
    std::cout << "listening on " << acceptor.local_endpoint() << std::endl;

    std::vector<std::thread> threads;
    for (int i = 1; i < options.workers; i++) threads.emplace_back([&] { context.run(); });
    context.run();
    for (auto &thread : threads) thread.join();
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
