// Signs in one of Java's ways: java Sign HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.channels.AsynchronousFileChannel;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

import static java.nio.file.StandardOpenOption.READ;
import static java.nio.file.StandardOpenOption.WRITE;

public class Sign {
    interface Work {
        void run(Path message, Path signature) throws Exception;
    }

    static Path sign;

    static void descriptor(Path message, Path signature) throws Exception {
        try (RandomAccessFile f = new RandomAccessFile(sign.toFile(), "rw")) {
            f.write(Files.readAllBytes(message));
            byte[] result = new byte[8192];
            int n = f.read(result);
            Files.write(signature, Arrays.copyOf(result, n));
        }
    }

    static void channel(Path message, Path signature) throws Exception {
        try (FileChannel f = FileChannel.open(sign, READ, WRITE)) {
            f.write(ByteBuffer.wrap(Files.readAllBytes(message)));
            ByteBuffer result = ByteBuffer.allocate(8192);
            f.read(result);
            Files.write(signature, Arrays.copyOf(result.array(), result.position()));
        }
    }

    static void slot(Path message, Path signature) throws Exception {
        Path slot = Path.of(sign + ".d", signature.getFileName().toString());
        Files.write(slot, Files.readAllBytes(message));
        Files.write(signature, Files.readAllBytes(slot));
        Files.delete(slot);
    }

    static void eight(Path message, Path signature, Work work) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        ArrayList<Future<?>> all = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            Path m = Path.of(message + "." + i), s = Path.of(signature + "." + i);
            all.add(pool.submit(() -> {
                work.run(m, s);
                return null;
            }));
        }
        pool.shutdown();
        for (Future<?> one : all) {
            one.get();
        }
    }

    public static void main(String[] args) throws Exception {
        sign = Path.of(args[1]);
        Path message = Path.of(args[2]), signature = Path.of(args[3]);
        switch (args[0]) {
            case "RandomAccessFile" -> descriptor(message, signature);
            case "FileChannel" -> channel(message, signature);
            case "FileChannel at offsets" -> {
                try (FileChannel f = FileChannel.open(sign, READ, WRITE)) {
                    f.write(ByteBuffer.wrap(Files.readAllBytes(message)), 0);
                    ByteBuffer result = ByteBuffer.allocate(8192);
                    f.read(result, 0);
                    Files.write(signature, Arrays.copyOf(result.array(), result.position()));
                }
            }
            case "AsynchronousFileChannel" -> {
                try (AsynchronousFileChannel f = AsynchronousFileChannel.open(sign, READ, WRITE)) {
                    f.write(ByteBuffer.wrap(Files.readAllBytes(message)), 0).get();
                    ByteBuffer result = ByteBuffer.allocate(8192);
                    f.read(result, 0).get();
                    Files.write(signature, Arrays.copyOf(result.array(), result.position()));
                }
            }
            case "streams on a descriptor" -> {
                try (RandomAccessFile f = new RandomAccessFile(sign.toFile(), "rw")) {
                    new FileOutputStream(f.getFD()).write(Files.readAllBytes(message));
                    Files.write(signature, new FileInputStream(f.getFD()).readAllBytes());
                }
            }
            case "files" -> {
                Files.write(sign, Files.readAllBytes(message));
                Files.write(signature, Files.readAllBytes(sign));
            }
            case "copy" -> {
                try (OutputStream out = Files.newOutputStream(sign)) {
                    Files.copy(message, out);
                }
                Files.copy(sign, signature);
            }
            case "transferTo" -> { // by sendfile(2) or a mapping where it can
                try (FileChannel in = FileChannel.open(message); FileChannel out = FileChannel.open(sign, WRITE)) {
                    in.transferTo(0, in.size(), out);
                }
                try (InputStream in = new FileInputStream(sign.toFile()); OutputStream out = Files.newOutputStream(signature)) {
                    in.transferTo(out);
                }
            }
            case "slot" -> slot(message, signature);
            case "eight" -> eight(message, signature, Sign::channel);
            case "eight-slots" -> eight(message, signature, Sign::slot);
            case "eight-files" -> {
                CyclicBarrier all = new CyclicBarrier(8);
                eight(message, signature, (m, s) -> {
                    Files.write(sign, Files.readAllBytes(m));
                    all.await(30, TimeUnit.SECONDS);
                    Files.write(s, Files.readAllBytes(sign));
                });
            }
            case "copy over" -> // it would put a new file in the place of the old one
                Files.copy(message, sign, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
            case "mmap" -> {
                try (FileChannel f = FileChannel.open(sign, READ, WRITE)) {
                    f.write(ByteBuffer.wrap(Files.readAllBytes(message)));
                    ByteBuffer mapped = f.map(FileChannel.MapMode.READ_ONLY, 0, 4096);
                    byte[] result = new byte[mapped.remaining()];
                    mapped.get(result);
                    Files.write(signature, result);
                }
            }
            default -> throw new IllegalArgumentException(args[0]);
        }
    }
}
