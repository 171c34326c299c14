console.log('no native sources yet');
