<?php
// Signs in one of PHP's ways: php sign.php HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
// A warning is an error here, as in every framework: PHP itself goes on with an empty answer.
set_error_handler(function ($number, $text) { throw new ErrorException($text); });

[, $how, $sign, $message, $signature] = $argv;

function descriptor(string $message, string $signature): void
{
    global $sign;
    $f = fopen($sign, 'r+b');
    fwrite($f, file_get_contents($message));
    file_put_contents($signature, stream_get_contents($f));
    fclose($f);
}

function files(string $message, string $signature): void
{
    global $sign;
    file_put_contents($sign, file_get_contents($message));
    file_put_contents($signature, file_get_contents($sign));
}

function slot(string $message, string $signature): void
{
    global $sign;
    $slot = "$sign.d/" . basename($signature);
    file_put_contents($slot, file_get_contents($message));
    file_put_contents($signature, file_get_contents($slot));
    unlink($slot);
}

function processes(callable $work): void
{
    global $message, $signature;
    for ($n = 0; $n < 8; $n++) {
        if (pcntl_fork() === 0) {
            $work("$message.$n", "$signature.$n");
            exit(0);
        }
    }
    $failed = 0;
    while (pcntl_wait($status) > 0) {
        $failed = $failed ?: $status;
    }
    exit($failed ? 1 : 0);
}

switch ($how) {
    case 'descriptor':
        descriptor($message, $signature);
        break;
    case 'fread':
        $f = fopen($sign, 'r+b');
        fwrite($f, file_get_contents($message));
        file_put_contents($signature, fread($f, 8192));
        break;
    case 'rewind':
        $f = fopen($sign, 'r+b');
        fwrite($f, file_get_contents($message));
        rewind($f);
        file_put_contents($signature, stream_get_contents($f));
        break;
    case 'copy_to_stream': // maps its source where it can
        $f = fopen($sign, 'r+b');
        stream_copy_to_stream(fopen($message, 'rb'), $f);
        stream_copy_to_stream($f, fopen($signature, 'wb'));
        break;
    case 'SplFileObject':
        $f = new SplFileObject($sign, 'r+b');
        $f->fwrite(file_get_contents($message));
        file_put_contents($signature, $f->fread(8192));
        break;
    case 'files':
        files($message, $signature);
        break;
    case 'copy':
        copy($message, $sign);
        copy($sign, $signature);
        break;
    case 'readfile':
        copy($message, $sign);
        ob_start();
        readfile($sign);
        file_put_contents($signature, ob_get_clean());
        break;
    case 'slot':
        slot($message, $signature);
        break;
    case 'copy-slot':
        copy($message, "$sign.d/php");
        copy("$sign.d/php", $signature);
        unlink("$sign.d/php");
        break;
    case 'eight':
        processes('descriptor');
        break;
    case 'eight-slots':
        processes('slot');
        break;
    case 'eight-processes':
        processes('files');
        break;
    default:
        exit("no such way: $how\n");
}
